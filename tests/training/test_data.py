"""The sample stream over real shards: what it promises, for any number of workers."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra import storage
from infra.errors import DamagedError, InputError
from pipeline.corpus import Manifest, iter_samples, read_manifest, selection_url, shard_url
from training.data import SampleStream, decode
from training.held_out import is_held_out
from training.streaming.ahead import prefetched
from training.streaming.batch import StreamSettings

FIVE: dict[str, Any] = {
    "image_size": 16,
    "horizontal_flip": True,
    "batch_size": 12,
    "shuffle_shards": 2,
    "shuffle_samples": 24,
    "cache_size_mb": 100,
}
"""35 samples in 5 shards."""


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Manifest]) -> str:
    root = str(tmp_path_factory.mktemp("five"))
    make_corpus(root, num_shards=5, num_samples=7)
    return root


@pytest.fixture
def own_five(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> str:
    """For tests that change it."""
    root = str(tmp_path / "five")
    make_corpus(root, num_shards=5, num_samples=7)
    return root


@pytest.fixture
def far_five(five: str) -> Iterator[str]:
    """The same where nothing can be read ahead but by us."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{five}/", "/five/", recursive=True)
    yield "memory://five"
    memory.rm("/five", recursive=True)


def stream_of(root: str, **changes: Any) -> SampleStream:
    return SampleStream(StreamSettings(root=root, **(FIVE | changes)))


def uids(stream: SampleStream, steps: range) -> list[str]:
    size = stream.settings.batch_size
    return [uid for step in steps for uid in stream.batch(step, range(size)).uids]


def select(root: str, name: str, weights: dict[str, float]) -> None:
    """A selection that keeps these."""
    every = [s.uid for shard in read_manifest(root).shards for s in iter_samples(root, shard)]
    table = pa.table(
        {
            "uid": every,
            "keep": [uid in weights for uid in every],
            "weight": pa.array([weights.get(uid, 0.0) for uid in every], pa.float32()),
            "reason": pa.array([None] * len(every), pa.string()),
        }
    )
    storage.publish_table(selection_url(root, name), table)


# The promise


@given(
    batch_size=st.integers(1, 16),
    num_workers=st.sampled_from([1, 2, 3, 8]),
    seed=st.integers(0, 3),
    first_step=st.integers(0, 30),
    changes=st.sampled_from(
        [{}, {"crop": "random"}, {"cache_size_mb": 1}, {"held_out": 0.2}, {"shuffle_shards": 1}]
    ),
)
@settings(max_examples=25, deadline=None)
def test_workers_share_the_batches_that_one_would_have_whatever_came_before(
    five: str,
    batch_size: int,
    num_workers: int,
    seed: int,
    first_step: int,
    changes: dict[str, Any],
) -> None:
    alone = stream_of(five, batch_size=batch_size, seed=seed, **changes)
    cuts = [batch_size * n // num_workers for n in range(num_workers + 1)]
    ranges = [range(a, b) for a, b in pairwise(cuts) if a < b]
    workers = [stream_of(five, batch_size=batch_size, seed=seed, **changes) for _ in ranges]
    for step in range(3):  # one of which came from the start, the others from a crash
        whole = alone.batch(step, range(batch_size))
    for step in range(first_step, first_step + 3):
        whole = alone.batch(step, range(batch_size))
        parts = [w.batch(step, part) for w, part in zip(workers, ranges, strict=True)]
        assert [uid for part in parts for uid in part.uids] == whole.uids
        assert [caption for part in parts for caption in part.captions] == whole.captions
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)


def test_every_epoch_visits_every_sample_once(five: str) -> None:
    stream = stream_of(five)
    times = Counter[str]()
    for step in range(35):  # 12 epochs
        times.update(stream.batch(step, range(12)).uids)
        if step >= 3:
            # Lanes end an epoch within a batch of each other.
            assert max(times.values()) - min(times.values()) <= 2
    assert set(times.values()) == {12}
    assert len(times) == 35


def test_what_a_batch_holds_is_what_the_shards_hold(five: str) -> None:
    stream = stream_of(five, horizontal_flip=False)
    samples = {
        sample.uid: sample
        for shard in read_manifest(five).shards
        for sample in iter_samples(five, shard)
    }
    batch = stream.batch(3, range(12))
    for uid, caption, pixels in zip(batch.uids, batch.captions, batch.pixels, strict=True):
        assert caption == samples[uid].caption
        assert np.array_equal(pixels.permute(1, 2, 0), decode(samples[uid].image, 16))


def test_seeds_give_other_orders(five: str) -> None:
    assert uids(stream_of(five), range(3)) != uids(stream_of(five, seed=1), range(3))


def test_workers_read_different_bytes_and_each_byte_once(
    tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "large")
    make_corpus(root, num_shards=4, num_samples=60)
    settings = {"batch_size": 16, "cache_size_mb": 2, "shuffle_samples": 64}
    alone = stream_of(root, **settings)
    workers = [stream_of(root, **settings) for _ in range(4)]
    for step in range(15):  # an epoch
        alone.batch(step, range(16))
        for rank, worker in enumerate(workers):
            worker.batch(step, range(4 * rank, 4 * rank + 4))
    shard_bytes = sum(shard.num_bytes for shard in read_manifest(root).shards)
    read = [worker.reader.num_bytes_read for worker in workers]
    assert alone.reader.num_bytes_read < 1.2 * shard_bytes  # a little of the next epoch is in it
    assert sum(read) < 1.3 * shard_bytes
    assert max(read) < 0.5 * shard_bytes


def test_memory_is_bounded_and_changes_nothing(far_five: str) -> None:
    small, large = stream_of(far_five, cache_size_mb=1), stream_of(far_five)
    small.reader._max_bytes = 8_000
    small._kept._max_bytes = 4_000
    for step in range(9):
        assert torch.equal(small.batch(step, range(12)).pixels, large.batch(step, range(12)).pixels)
        assert small._kept.num_bytes <= 4_000
        # Beyond its bound the reader holds what the blocks at hand have left, and reads no further.
        assert 0 <= small.reader.num_bytes < 60_000
    before = large.reader.num_reads
    large.batch(9, range(12))
    assert large.reader.num_reads == before  # all 35 are kept, and nothing is read again
    assert large.reader.num_bytes == 0  # and what was read has been taken


def test_of_files_nothing_is_held(five: str) -> None:
    stream = stream_of(five, cache_size_mb=1)
    for step in range(3):
        stream.batch(step, range(12))
        assert stream.reader.num_bytes == 0
    assert 30 < stream.reader.num_reads <= 36


# Which samples


def test_selection_narrows_the_stream(own_five: str) -> None:
    every = sorted(set(uids(stream_of(own_five), range(4))))
    kept = every[::3]
    select(own_five, "third", dict.fromkeys(kept, 1.0))
    stream = stream_of(own_five, selection="third")
    assert stream.num_samples == len(kept)
    assert set(uids(stream, range(2))) == set(kept)
    assert len(stream.captions()) == len(kept)
    select(own_five, "nothing", {})
    with pytest.raises(InputError, match="no samples that selection 'nothing' keeps"):
        stream_of(own_five, selection="nothing")


def test_weights_say_how_often_a_sample_is_met(own_five: str) -> None:
    every = sorted(set(uids(stream_of(own_five), range(4))))
    weights = {every[0]: 4.0, every[1]: 0.25, every[2]: 0.0} | dict.fromkeys(every[3:12], 1.0)
    select(own_five, "weighed", weights)
    stream = stream_of(own_five, selection="weighed")
    assert stream.num_samples == 13  # 13.25 draws an epoch
    times = Counter(uids(stream, range(104)))  # 96 epochs
    assert times[every[0]] == pytest.approx(4 * 96, rel=0.02)
    assert times[every[1]] == pytest.approx(0.25 * 96, abs=3)
    assert times[every[2]] == 0
    for uid in every[3:12]:
        assert times[uid] == pytest.approx(96, abs=8)


def test_held_out_samples_are_never_met(five: str) -> None:
    stream = stream_of(five, held_out=0.3)
    met = set(uids(stream, range(6)))
    every = set(uids(stream_of(five), range(6)))
    assert met == {uid for uid in every if not is_held_out(uid, 0.3)}
    assert 0 < len(met) < len(every)
    assert len(stream.captions()) == len(met)


def test_corpora_are_mixed_by_their_shares_in_every_batch(
    five: str, tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> None:
    other = str(tmp_path / "other")
    make_corpus(other, num_shards=2, num_samples=40)
    theirs = {s.uid for shard in read_manifest(other).shards for s in iter_samples(other, shard)}
    theirs -= {s.uid for shard in read_manifest(five).shards for s in iter_samples(five, shard)}
    stream = stream_of(five, mix=(other,), mix_shares=(0.25,))
    steps = [stream.batch(step, range(12)) for step in range(40)]
    shares = [sum(uid in theirs for uid in batch.uids) / 12 for batch in steps]
    # 7 of the 80 are in both: emoji are the same, and so are their uids.
    assert np.mean(shares) == pytest.approx(0.25, abs=0.04)
    assert max(shares) <= 0.5
    by_samples = stream_of(five, mix=(other,))
    assert by_samples.num_samples == 115
    everything = Counter(
        uid for step in range(115) for uid in by_samples.batch(step, range(12)).uids
    )
    assert sum(everything[uid] for uid in theirs) == pytest.approx(12 * len(theirs), rel=0.02)


# Shapes and pictures


def test_a_step_has_one_shape_and_pictures_keep_theirs(
    tmp_path: Path, make_pictures: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "wide")
    make_pictures(root, [(64, 64), (96, 64), (64, 96), (128, 64)] * 8)
    changes = {"batch_size": 4, "max_aspect_ratio": 2.0, "side_multiple": 8, "image_size": 32}
    alone, workers = stream_of(root, **changes), [stream_of(root, **changes) for _ in range(2)]
    times, shapes = Counter[str](), Counter[tuple[int, ...]]()
    for step in range(32):  # 4 epochs
        batch = alone.batch(step, range(4))
        parts = [w.batch(step, range(2 * n, 2 * n + 2)) for n, w in enumerate(workers)]
        assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
        shapes[batch.pixels.shape[2:]] += 1
        times.update(batch.uids)
        for caption in batch.captions:
            width, height = map(int, caption.split(" by "))
            ratio = batch.pixels.shape[3] / batch.pixels.shape[2]
            assert abs(np.log(ratio) - np.log(width / height)) < 0.3
    assert len(shapes) >= 3
    assert all(max(h * w for h, w in shapes) <= 32 * 32 for _ in shapes)
    assert len(times) == 32
    assert max(times.values()) - min(times.values()) <= 2


def test_shapes_of_too_few_pictures_join_their_neighbour(
    tmp_path: Path, make_pictures: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "few")
    make_pictures(root, [(64, 64)] * 20 + [(128, 64)])
    stream = stream_of(root, batch_size=4, max_aspect_ratio=2.0, side_multiple=8, image_size=32)
    shapes = {stream.batch(step, range(4)).pixels.shape[2:] for step in range(12)}
    assert shapes == {(32, 32)}


def test_half_of_the_pictures_are_mirrored(five: str) -> None:
    plain, flipped = stream_of(five, horizontal_flip=False), stream_of(five)
    num_mirrored = 0
    for step in range(20):
        a, b = plain.batch(step, range(12)).pixels, flipped.batch(step, range(12)).pixels
        for original, maybe in zip(a, b, strict=True):
            if not torch.equal(original, maybe):
                assert torch.equal(original.flip(2), maybe)
                num_mirrored += 1
    # Some emoji are symmetric to the last pixel; of 240 draws 120 are expected.
    assert 60 < num_mirrored < 150


def test_random_crops_differ_from_epoch_to_epoch(
    tmp_path: Path, make_pictures: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "wide")
    make_pictures(root, [(192, 64)] * 4)
    stream = stream_of(root, batch_size=4, crop="random", horizontal_flip=False)
    seen: dict[str, set[bytes]] = {}
    for step in range(4):
        batch = stream.batch(step, range(4))
        for uid, pixels in zip(batch.uids, batch.pixels, strict=True):
            seen.setdefault(uid, set()).add(pixels.numpy().tobytes())
    assert all(len(crops) > 1 for crops in seen.values())


def test_decode_takes_the_centred_square() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (200, 30, 30)  # the middle third
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "JPEG", quality=95)
    pixels = decode(file.getvalue(), 16)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels[:, 2:-2].astype(int) - (200, 30, 30)).max() < 25


def test_captions_are_those_of_the_samples(five: str) -> None:
    manifest = read_manifest(five)
    expected = [s.caption for shard in manifest.shards for s in iter_samples(five, shard)]
    assert stream_of(five).captions() == list(dict.fromkeys(expected))


def test_shards_may_lie_at_any_url_and_tables_need_not_stay(five: str, far_five: str) -> None:
    there, here = stream_of(far_five), stream_of(five)
    catalogue = there.catalogues[0]
    catalogue._tables.clear()
    catalogue._table_bytes, catalogue._cache_bytes = 0, 1000  # of one shard at a time
    for step in range(5):
        batch, same = there.batch(step, range(12)), here.batch(step, range(12))
        assert batch.uids == same.uids
        assert torch.equal(batch.pixels, same.pixels)
    assert len(catalogue._tables) <= 1


# Ahead of the step


@pytest.mark.timeout(120)
def test_prefetched_batches_come_in_order_and_the_thread_ends(five: str) -> None:
    stream, other = stream_of(five), stream_of(five)
    with prefetched(stream, range(2, 6), range(12)) as batches:
        got = [batch.uids for batch in batches]
    assert got == [other.batch(step, range(12)).uids for step in range(2, 6)]
    with prefetched(stream, range(10**9), range(12)) as batches:
        next(batches)  # leaving early waits for no more steps, of which there is no end


# Bad input


@pytest.mark.parametrize("damage", ["cut", "shifted", "other bytes", "missing"])
def test_a_damaged_shard_in_the_middle_of_an_epoch_is_named(own_five: str, damage: str) -> None:
    stream = stream_of(own_five)
    tar = Path(shard_url(own_five, "00003"))
    data = tar.read_bytes()
    # The last one cuts a picture off in the middle of its scan, where it still decodes in part.
    changed = {
        "cut": data[:5000],
        "shifted": bytes(512) + data,
        "other bytes": data[:1400] + bytes(800) + data[2200:],
    }
    tar.write_bytes(changed[damage]) if damage in changed else tar.unlink()
    with (
        pytest.raises(DamagedError, match=r"(shard .*00003|sample [0-9a-f]{32}).*carrara verify"),
        prefetched(stream, range(9), range(12)) as batches,
    ):
        list(batches)


def test_a_corpus_without_captions_is_an_error_unless_none_are_wanted(
    tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "mute")
    make_corpus(root, num_shards=1, num_samples=8, captions=dict.fromkeys(range(8), " "))
    with pytest.raises(InputError, match=r"none of its 8 samples has a caption.*--caption-dropout"):
        stream_of(root, needs_captions=True)
    assert stream_of(root).batch(0, range(12)).captions == [" "] * 12
