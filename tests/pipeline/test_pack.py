import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import webdataset

from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from infra.summary import Summary
from pipeline import pack, select, spool, verify
from pipeline.corpus import (
    Manifest,
    PackedSample,
    Sample,
    iter_samples,
    read_manifest,
    read_rows,
    read_selection,
)

NO_MAN = "caption NOT LIKE '%halo%'"


@pytest.fixture
def selected(small_corpus: str) -> str:
    choose(small_corpus)
    return small_corpus


def choose(root: str, where: str = NO_MAN, **settings: Any) -> None:
    select.run(select.Config(root=root, name="good", where=where, **settings))


def run(root: str, output: Path | str, **settings: Any) -> Summary:
    settings = {"selection": "good", "samples_per_shard": 5, **settings}
    return pack.run(pack.Config(root=root, output=str(output), **settings))


def samples_of(root: str) -> list[Sample]:
    return [sample for shard in read_manifest(root).shards for sample in iter_samples(root, shard)]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_all_that_is_kept_arrives_once_and_unchanged(selected: str, tmp_path: Path) -> None:
    summary = run(selected, tmp_path / "out")
    selection = read_selection(selected, "good")
    kept = set(selection.filter(selection["keep"])["uid"].to_pylist())
    before = {sample.uid: sample for sample in samples_of(selected)}
    after = samples_of(str(tmp_path / "out"))
    assert 0 < len(kept) < len(before)
    assert sorted(sample.uid for sample in after) == sorted(kept)
    for sample in after:
        source = before[sample.uid]
        assert (sample.image, sample.caption) == (source.image, source.caption)
        assert sample.metadata["source_key"] == source.key
        assert sample.metadata["key"] == sample.key
    assert summary.num_out == len(kept)


def test_shards_are_even_and_shuffled_across_the_source(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "out", samples_per_shard=10)
    manifest = read_manifest(str(tmp_path / "out"))
    sizes = [shard.num_samples for shard in manifest.shards]
    assert max(sizes) <= 10
    assert max(sizes) - min(sizes) <= 1
    sources = [sample.metadata["source_key"] for sample in samples_of(str(tmp_path / "out"))]
    assert sources != sorted(sources)
    assert {key[:5] for key in sources[: sizes[0]]} == {"00000", "00001"}


def test_rows_carry_uid_source_and_weight(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "out")
    out = str(tmp_path / "out")
    for shard in read_manifest(out).shards:
        rows = read_rows(out, shard)
        samples = list(iter_samples(out, shard))
        assert rows["uid"].to_pylist() == [sample.uid for sample in samples]
        assert rows["key"].to_pylist() == [sample.key for sample in samples]
        assert pc.unique(rows["weight"]).to_pylist() == [1.0]
        assert pc.unique(rows["status"]).to_pylist() == ["success"]


def test_the_same_command_gives_the_same_bytes(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "a")
    run(selected, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_another_seed_is_another_order(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "a", seed=0)
    run(selected, tmp_path / "b", seed=1)
    one, two = ([sample.uid for sample in samples_of(str(tmp_path / name))] for name in ("a", "b"))
    assert one != two
    assert sorted(one) == sorted(two)


def test_the_order_does_not_follow_from_the_sources_sharding(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "a")
    repacked = str(tmp_path / "repacked")
    run(selected, repacked, seed=7, samples_per_shard=4)
    choose(repacked, "true")
    run(repacked, tmp_path / "b")
    one, two = ([s.uid for s in samples_of(str(tmp_path / name))] for name in ("a", "b"))
    assert one == two


def test_a_killed_run_is_completed_to_the_same_bytes(selected: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(selected, out)
    whole = files_of(out)
    (out / "manifest.json").unlink()
    (out / "shards" / "00002_stats.json").unlink()
    (out / "shards" / "00001.tar").unlink()
    (out / "shards" / "00001_stats.json").unlink()
    run(selected, out)
    assert files_of(out) == whole


def test_a_finished_run_leaves_the_files_alone(selected: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(selected, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run(selected, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    assert again.counts == first.counts


def test_other_settings_need_overwrite(selected: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(selected, out)
    before = files_of(out)
    with pytest.raises(ConflictError, match="seed = 0, now 3"):
        run(selected, out, seed=3)
    assert files_of(out) == before
    run(selected, out, seed=3, overwrite=True)
    assert files_of(out) != before


@pytest.mark.parametrize("place", ["", ".."])
def test_the_corpus_is_never_packed_over_itself(selected: str, place: str) -> None:
    before = files_of(Path(selected))
    output = selected if not place else str(Path(selected).parent)
    with pytest.raises(ConfigError, match="expected a place of its own"):
        run(selected, output, overwrite=True)
    assert files_of(Path(selected)) == before


def test_an_empty_selection_is_an_error(selected: str, tmp_path: Path) -> None:
    choose(selected, "false", overwrite=True)
    with pytest.raises(InputError, match="keeps none of 24 samples"):
        run(selected, tmp_path / "out")


def test_a_selection_of_another_corpus_is_refused(
    selected: str, tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> None:
    make_corpus(selected, num_shards=1)
    with pytest.raises(InputError, match=r"another corpus .*carrara select"):
        run(selected, tmp_path / "out")


def test_a_damaged_source_shard_is_named_and_no_manifest_is_left(
    selected: str, tmp_path: Path
) -> None:
    tar = Path(selected, "shards", "00001.tar")
    tar.write_bytes(tar.read_bytes()[:6000])
    with pytest.raises(DamagedError, match=r"00001\.tar"):
        run(selected, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_packed_shards(selected: str, tmp_path: Path) -> None:
    summary = run(selected, tmp_path / "out")
    urls = sorted(str(path) for path in (tmp_path / "out" / "shards").glob("*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "txt")
    pictures = list(dataset)
    del dataset
    gc.collect()  # webdataset leaves its files to the collector, which warns
    assert len(pictures) == summary.num_out
    assert pictures[0][0].size == (64, 64)


def test_buffers_that_overflow_lose_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(spool, "BUFFER_BYTES", 50)
    samples = spool.SampleSpool(tmp_path / "spool")
    for place in reversed(range(20)):
        samples.add_sample(place % 3, place, PackedSample("", place, b"members %d" % place))
    samples.flush()
    expected = [PackedSample(f"k{i}", i, b"members %d" % i) for i in range(1, 20, 3)]
    assert list(samples.read(1, lambda place: f"k{place}")) == expected
    assert list(samples.read(9, str)) == []


def test_to_s3_and_back_gives_the_same_corpus(
    small_corpus: str, tmp_path: Path, s3_bucket: str
) -> None:
    choose(small_corpus, "true")
    run(small_corpus, tmp_path / "local")
    run(small_corpus, f"{s3_bucket}/remote")
    assert read_manifest(f"{s3_bucket}/remote") == read_manifest(str(tmp_path / "local"))
    choose(f"{s3_bucket}/remote", "width = 64")
    assert verify.run(verify.Config(root=f"{s3_bucket}/remote")).counts["selections intact"] == 1
    run(f"{s3_bucket}/remote", tmp_path / "back")
    back, there = samples_of(str(tmp_path / "back")), samples_of(str(tmp_path / "local"))
    assert [sample.image for sample in back] == [sample.image for sample in there]
    assert pa.table({"uid": [s.uid for s in back]}).num_rows == 24
