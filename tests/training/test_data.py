import io
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from infra import storage
from infra.errors import DamagedError, InputError
from pipeline.corpus import Manifest, iter_samples, read_manifest, selection_url, shard_url
from training.data import SampleStream, decode, prefetched


@pytest.fixture
def make_stream(
    tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> Callable[..., SampleStream]:
    """make_stream(**changes): over 5 shards of 7 samples, shuffled two shards at a time."""
    root = str(tmp_path / "five")
    make_corpus(root, num_shards=5, num_samples=7)

    def make(**changes: Any) -> SampleStream:
        settings: dict[str, Any] = {
            "root": root,
            "selection": None,
            "image_size": 16,
            "horizontal_flip": True,
            "batch_size": 12,
            "seed": 0,
            "shuffle_shards": 2,
            "cache_size_mb": 100,
            "num_decoders": 2,
        }
        settings |= changes
        return SampleStream(settings.pop("root"), **settings)

    return make


def uids(stream: SampleStream, steps: range) -> list[str]:
    return [uid for step in steps for uid in stream.batch(step, range(stream._batch_size)).uids]


def test_every_epoch_visits_every_sample_once(make_stream: Callable[..., SampleStream]) -> None:
    stream = make_stream()
    stream_uids = uids(stream, range(12))  # 144 samples: four epochs of 35 and a bit
    epochs = [stream_uids[i * 35 : (i + 1) * 35] for i in range(4)]
    for epoch in epochs:
        assert len(set(epoch)) == 35
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_workers_share_the_batch_that_one_would_have(
    make_stream: Callable[..., SampleStream], num_workers: int
) -> None:
    alone, share = make_stream(), 12 // num_workers
    workers = [make_stream() for _ in range(num_workers)]
    for step in range(8):
        whole = alone.batch(step, range(12))
        parts = [w.batch(step, range(i * share, (i + 1) * share)) for i, w in enumerate(workers)]
        assert [uid for part in parts for uid in part.uids] == whole.uids
        assert [caption for part in parts for caption in part.captions] == whole.captions
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)


def test_a_step_is_the_same_whatever_came_before(
    make_stream: Callable[..., SampleStream],
) -> None:
    run, fresh = make_stream(), make_stream()
    for step in range(9):
        before = run.batch(step, range(12))
    after = fresh.batch(8, range(12))
    assert before.uids == after.uids
    assert torch.equal(before.pixels, after.pixels)


def test_seeds_give_other_orders(make_stream: Callable[..., SampleStream]) -> None:
    assert uids(make_stream(), range(3)) != uids(make_stream(seed=1), range(3))


def test_samples_mix_across_the_shards_of_a_window(
    make_stream: Callable[..., SampleStream],
) -> None:
    stream = make_stream()
    shard_of = {
        sample.uid: shard.name
        for shard in stream.manifest.shards
        for sample in iter_samples(stream.root, shard)
    }
    first_window = [shard_of[uid] for uid in uids(stream, range(2))[:14]]
    assert sorted(Counter(first_window).values()) == [7, 7]
    assert len(set(first_window[:7])) == 2


def test_cache_stays_bounded_and_changes_nothing(
    make_stream: Callable[..., SampleStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = make_stream(), make_stream()
    monkeypatch.setattr(small, "_cache_size_bytes", 1)
    assert uids(small, range(9)) == uids(large, range(9))
    assert len(large._cache) == 5
    assert len(small._cache) <= 4  # the two windows at hand


def test_selection_narrows_the_stream(make_stream: Callable[..., SampleStream]) -> None:
    full = make_stream()
    every = sorted(set(uids(full, range(3))))
    kept = every[::3]
    table = pa.table(
        {
            "uid": every,
            "keep": [uid in kept for uid in every],
            "weight": [1.0] * len(every),
            "reason": [None] * len(every),
        }
    )
    storage.publish_table(selection_url(full.root, "third"), table)
    stream = make_stream(selection="third")
    assert stream.num_samples == len(kept)
    assert set(uids(stream, range(2))) == set(kept)
    assert len(stream.captions()) == len(kept)
    nothing = table.set_column(1, "keep", pa.array([False] * len(every)))
    storage.publish_table(selection_url(full.root, "nothing"), nothing)
    with pytest.raises(InputError, match="no samples that selection 'nothing' keeps"):
        make_stream(selection="nothing")


def test_damaged_shard_is_named(make_stream: Callable[..., SampleStream]) -> None:
    stream = make_stream()
    tar = Path(shard_url(stream.root, "00003"))
    tar.write_bytes(tar.read_bytes()[:5000])
    with (
        pytest.raises(DamagedError, match="00003"),
        prefetched(stream, range(9), range(12)) as batches,
    ):
        list(batches)


def test_prefetched_batches_come_in_order_and_the_thread_ends(
    make_stream: Callable[..., SampleStream],
) -> None:
    stream, other = make_stream(), make_stream()
    with prefetched(stream, range(2, 6), range(12)) as batches:
        got = [batch.uids for batch in batches]
    assert got == [other.batch(step, range(12)).uids for step in range(2, 6)]
    started = time.monotonic()
    with prefetched(stream, range(10_000), range(12)) as batches:
        next(batches)
    assert time.monotonic() - started < 5  # leaving early does not wait for 10,000 steps


def test_captions_are_those_of_the_samples(make_stream: Callable[..., SampleStream]) -> None:
    stream = make_stream()
    manifest = read_manifest(stream.root)
    expected = [s.caption for shard in manifest.shards for s in iter_samples(stream.root, shard)]
    assert stream.captions() == list(dict.fromkeys(expected))


def test_decode_takes_the_centred_square() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (200, 30, 30)  # the middle third
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "JPEG", quality=95)
    pixels = decode(file.getvalue(), 16)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels[:, 2:-2].astype(int) - (200, 30, 30)).max() < 25


def test_half_of_the_pictures_are_mirrored(make_stream: Callable[..., SampleStream]) -> None:
    plain, flipped = make_stream(horizontal_flip=False), make_stream()
    num_mirrored = 0
    for step in range(20):
        a, b = plain.batch(step, range(12)).pixels, flipped.batch(step, range(12)).pixels
        for original, maybe in zip(a, b, strict=True):
            if not torch.equal(original, maybe):
                assert torch.equal(original.flip(2), maybe)
                num_mirrored += 1
    # Some emoji are symmetric to the last pixel; of 240 draws 120 are expected.
    assert 60 < num_mirrored < 150
