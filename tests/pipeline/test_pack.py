import gc
import hashlib
import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import webdataset
from PIL import Image

from infra import storage
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from infra.summary import Summary
from pipeline import forget, pack, select, verify
from pipeline.corpus import (
    ColumnsManifest,
    Manifest,
    iter_samples,
    read_image,
    read_manifest,
    read_rows,
    read_selection,
    write_columns,
)
from pipeline.picture_hash import picture_hash
from pipeline.sample import PackedSample, Sample
from pipeline.selecting import repack, spool
from pipeline.takedown.tombstones import (
    Kind,
    Tombstone,
    add_tombstones,
    read_tombstones,
    url_digest,
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


def test_reading_from_front_to_back_gives_the_same_bytes(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "a")
    run(selected, tmp_path / "b", sequential=True)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_tars_beyond_those_held_open_are_read_too(
    selected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(selected, tmp_path / "a")
    monkeypatch.setattr(repack, "MAX_OPEN_FILES", 1)
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


@pytest.mark.parametrize("num_threads", [1, 8])
def test_the_number_of_threads_leaves_the_bytes_as_they_are(
    selected: str, tmp_path: Path, num_threads: int
) -> None:
    run(selected, tmp_path / "a")
    run(selected, tmp_path / "b", num_threads=num_threads)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_every_picture_of_a_packed_corpus_is_read_by_its_place(
    selected: str, tmp_path: Path
) -> None:
    run(selected, tmp_path / "out")
    out = str(tmp_path / "out")
    for shard in read_manifest(out).shards:
        rows = read_rows(out, shard).to_pylist()
        for row, sample in zip(rows, iter_samples(out, shard), strict=True):
            picture = read_image(out, shard, row["image_offset"], row["image_size"])
            assert picture == sample.image
            assert hashlib.sha256(picture).hexdigest() == row["sha256"]


@pytest.mark.parametrize("sequential", [True, False])
def test_kills_leave_nothing_but_whole_shards(
    selected: str, tmp_path: Path, sequential: bool
) -> None:
    run(selected, tmp_path / "whole", samples_per_shard=1)
    out = tmp_path / "out"
    arguments = [*("pack", selected, str(out)), *("--selection", "good", "--num-threads", "2")]
    arguments += ["--samples-per-shard", "1", *(["--sequential"] if sequential else [])]
    program = f"import carrara; carrara.main({arguments!r})"
    for num_files in (1, 15):
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("shards/*"))) < num_files:
            time.sleep(0.001)
        process.kill()
        process.wait()
    run(selected, out, samples_per_shard=1, sequential=sequential)
    assert files_of(out) == files_of(tmp_path / "whole")


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


@pytest.mark.parametrize("place", [".", "..", "shards", "packed"])
def test_the_corpus_is_never_packed_over_itself(selected: str, place: str) -> None:
    before = files_of(Path(selected))
    with pytest.raises(ConfigError, match="expected a place of its own"):
        run(selected, Path(selected, place).resolve(), overwrite=True)
    assert files_of(Path(selected)) == before


@pytest.mark.parametrize("splits", [(), ("train=0.7", "test=0.3")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_shards_that_it_did_not_make_are_never_its_own(
    selected: str, tmp_path: Path, splits: tuple[str, ...], overwrite: bool
) -> None:
    """Such as those of a download that is still at work: whole shards, and no manifest yet."""
    out = tmp_path / "out"
    shards = out / ("train" if splits else "") / "shards"
    shards.mkdir(parents=True)
    for path in Path(selected, "shards").iterdir():
        (shards / path.name).write_bytes(path.read_bytes())
    before = files_of(out)
    with pytest.raises(ConflictError, match="which `carrara pack` did not make"):
        run(selected, out, splits=splits, overwrite=overwrite)
    assert files_of(out) == before


def test_a_split_that_another_began_is_not_taken_over(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "out", splits=SPLITS)
    (tmp_path / "out" / "train" / "stamp.json").unlink()
    before = files_of(tmp_path / "out")
    with pytest.raises(ConflictError, match=r"train: holds 'manifest\.json', which"):
        run(selected, tmp_path / "out", splits=SPLITS, overwrite=True)
    assert files_of(tmp_path / "out") == before


def test_overwriting_removes_the_corpus_and_what_was_made_of_it_alone(
    selected: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(selected, out)
    gone = ("columns/caption/00000.parquet", "selections/all.toml", "report.html")
    others = ("run/metrics.jsonl", "receipts/1.json", "notes.txt", "shards/notes.txt")
    for name in (*gone, *others):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    run(selected, out, samples_per_shard=100, overwrite=True)
    files = files_of(out)
    assert {name: files.get(name) for name in others} == {name: name.encode() for name in others}
    assert files.keys().isdisjoint(gone)
    assert [path.name for path in (out / "shards").glob("*.tar")] == ["00000.tar"]


def test_tombstones_outlast_an_overwrite_whatever_the_splits_become(
    selected: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    run(selected, out, splits=SPLITS)
    gone = samples_of(f"{out}/test")[0].uid
    add_tombstones(f"{out}/test", [tombstone("uid", gone)])
    run(selected, out, overwrite=True)
    assert gone not in {sample.uid for sample in samples_of(out)}
    assert read_tombstones(out).values("uid") == {gone}
    assert read_tombstones(f"{out}/test").values("uid") == {gone}
    assert not Path(out, "test", "manifest.json").exists()


def killed_after(num_steps: int, step: Callable[[str], Any]) -> Callable[[str], Any]:
    left = iter(range(num_steps))

    def killed(url: str) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(url)

    return killed


def test_an_overwrite_that_was_killed_is_completed_by_the_same_command(
    selected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, changed = tmp_path / "out", ("train=0.5", "test=0.5")
    run(selected, tmp_path / "whole", splits=changed)
    for num_steps in (0, 1, 2, 4):  # before each stamp, and among the shards
        run(selected, out, splits=SPLITS, overwrite=True)
        with monkeypatch.context() as patched:
            patched.setattr(storage, "publish", killed_after(num_steps, storage.publish))
            with pytest.raises(KeyboardInterrupt):
                run(selected, out, splits=changed, overwrite=True)
        run(selected, out, splits=changed, overwrite=True)
        assert files_of(out) == files_of(tmp_path / "whole")


def test_a_takedown_that_is_not_finished_is_not_overwritten(selected: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(selected, out)
    (out / "forget").mkdir()
    (out / "forget" / "plan.json").write_text("{}")
    before = files_of(out)
    with pytest.raises(ConflictError, match=r"carrara forget .* first"):
        run(selected, out, seed=1, overwrite=True)
    assert files_of(out) == before


SPLITS = ("train=0.7", "test=0.3")


def split_uids(output: Path | str) -> dict[str, list[str]]:
    return {
        name: [sample.uid for sample in samples_of(str(Path(output) / name))]
        for name in ("train", "test")
    }


def test_each_split_is_a_corpus_of_its_own_and_none_is_lost(selected: str, tmp_path: Path) -> None:
    summary = run(selected, tmp_path / "out", splits=SPLITS)
    uids = split_uids(tmp_path / "out")
    run(selected, tmp_path / "whole")
    whole = [sample.uid for sample in samples_of(str(tmp_path / "whole"))]
    assert sorted(uids["train"] + uids["test"]) == sorted(whole)
    assert len(uids["train"]) > len(uids["test"]) > 0
    assert {name: summary.counts[name] for name in uids} == {k: len(v) for k, v in uids.items()}
    for name in uids:
        root = str(tmp_path / "out" / name)
        assert verify.run(verify.Config(root=root)).num_out > 0
        sizes = [shard.num_samples for shard in read_manifest(root).shards]
        assert max(sizes) - min(sizes) <= 1


def test_a_samples_split_follows_from_its_uid_alone(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "a", splits=SPLITS)
    choose(selected, "caption LIKE '%a%'", overwrite=True)
    run(selected, tmp_path / "b", splits=SPLITS, seed=5, samples_per_shard=3)
    one, two = split_uids(tmp_path / "a"), split_uids(tmp_path / "b")
    both = {*one["train"], *one["test"]} & {*two["train"], *two["test"]}
    assert len(both) > 8
    assert both & {*one["test"]} == both & {*two["test"]}


def test_copies_never_straddle_splits(selected: str, tmp_path: Path) -> None:
    choose(selected, "true", overwrite=True)
    uids = [sample.uid for sample in samples_of(selected)]
    groups = [uids[i : i + 4] for i in range(0, 24, 4)]
    write_duplicates(selected, {uid: group[0] for group in groups for uid in group})
    run(selected, tmp_path / "out", splits=SPLITS)
    test = set(split_uids(tmp_path / "out")["test"])
    assert {len(test & set(group)) for group in groups} == {0, 4}


def test_a_group_stays_together_whatever_of_it_is_kept(selected: str, tmp_path: Path) -> None:
    choose(selected, "true", overwrite=True)
    uids = [sample.uid for sample in samples_of(selected)]
    write_duplicates(selected, dict.fromkeys(uids[:8], uids[0]))
    run(selected, tmp_path / "a", splits=SPLITS)
    before = set(split_uids(tmp_path / "a")["test"])
    dropped = min(uids[:8])  # the one that decides for the group
    choose(selected, f"uid <> '{dropped}'", overwrite=True)
    run(selected, tmp_path / "b", splits=SPLITS)
    assert set(split_uids(tmp_path / "b")["test"]) == before - {dropped}


def test_a_killed_split_run_is_completed_to_the_same_bytes(selected: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(selected, out, splits=SPLITS)
    whole = files_of(out)
    (out / "test" / "manifest.json").unlink()
    (out / "train" / "manifest.json").unlink()
    (out / "train" / "shards" / "00001_stats.json").unlink()
    run(selected, out, splits=SPLITS)
    assert files_of(out) == whole


def test_other_splits_need_overwrite(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "out", splits=SPLITS)
    with pytest.raises(ConflictError, match="splits"):
        run(selected, tmp_path / "out", splits=("train=0.9", "test=0.1"))
    with pytest.raises(ConflictError, match="splits"):
        run(selected, tmp_path / "out")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train=0.9", "test=0.2"), r"sum to 1\.1; expected 1"),
        (("train=0.5", "train=0.5"), "comes twice"),
        (("train",), r"'train': expected NAME=SHARE"),
        (("../train=1",), "expected NAME=SHARE"),
        (("train=1", "test=0.0"), "above 0"),
    ],
)
def test_splits_that_make_no_sense(
    selected: str, tmp_path: Path, splits: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(selected, tmp_path / "out", splits=splits)
    assert not (tmp_path / "out").exists()


def test_a_split_that_gets_nothing_is_an_error(selected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="test gets none of"):
        run(selected, tmp_path / "out", splits=("train=0.999999", "test=0.000001"))


def tombstone(kind: Kind, value: str) -> Tombstone:
    return Tombstone(kind, value, None, "2026-01-01T00:00:00", "receipt")


def test_what_was_taken_down_is_left_out_for_good(selected: str, tmp_path: Path) -> None:
    run(selected, tmp_path / "before")
    before = samples_of(str(tmp_path / "before"))
    by_uid, by_url, by_sha256 = before[:3]
    stones = [
        tombstone("uid", by_uid.uid),
        tombstone("url", url_digest(by_url.metadata["url"])),
        tombstone("sha256", by_sha256.metadata["sha256"]),
    ]
    add_tombstones(selected, stones)
    summary = run(selected, tmp_path / "out")
    after = {sample.uid for sample in samples_of(str(tmp_path / "out"))}
    assert after == {sample.uid for sample in before[3:]}
    assert summary.counts["taken down"] == 3
    assert summary.num_in == sum(summary.counts.values())
    assert read_tombstones(str(tmp_path / "out")).stones == read_tombstones(selected).stones


def test_what_looks_like_a_picture_taken_down_is_left_out(selected: str, tmp_path: Path) -> None:
    sample = samples_of(selected)[0]
    with Image.open(io.BytesIO(sample.image)) as picture:
        bits = picture_hash(np.asarray(picture.convert("RGB"))).bits
    add_tombstones(selected, [Tombstone("picture", bits.hex(), 0, "2026-01-01", "receipt")])
    choose(selected, "true", overwrite=True)
    run(selected, tmp_path / "out")
    assert sample.uid not in {one.uid for one in samples_of(str(tmp_path / "out"))}


def test_scores_of_another_corpus_keep_nobody_from_packing_after_a_takedown(
    selected: str, tmp_path: Path
) -> None:
    write_duplicates(selected, {})
    record = Path(selected, "columns", "duplicates", "manifest.json")
    record.write_text(record.read_text().replace(read_manifest(selected).digest, "0" * 16))
    sample = samples_of(selected)[0]
    add_tombstones(selected, [tombstone("uid", sample.uid)])
    assert run(selected, tmp_path / "out").num_out > 0
    assert sample.uid not in {one.uid for one in samples_of(str(tmp_path / "out"))}


@pytest.mark.parametrize("where", ["true", "false"])
def test_a_corpus_of_which_nothing_is_left_has_nothing_to_pack(
    selected: str, tmp_path: Path, where: str
) -> None:
    choose(selected, where, overwrite=True)
    if where == "true":
        here = Workers(local=True)
        forget.run(forget.Config(root=selected, domain=("example.org",), workers=here))
    else:
        add_tombstones(selected, [tombstone("uid", samples_of(selected)[0].uid)])
    with pytest.raises(InputError, match="keeps none of"):
        run(selected, tmp_path / "out")


def test_packing_again_does_not_bring_back_what_was_taken_down(
    selected: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    run(selected, out, splits=SPLITS)
    gone = samples_of(f"{out}/test")[0].uid
    add_tombstones(f"{out}/test", [tombstone("uid", gone)])
    with pytest.raises(ConflictError, match="another input"):
        run(selected, out, splits=SPLITS)
    run(selected, out, splits=SPLITS, overwrite=True)
    assert gone not in {uid for uids in split_uids(out).values() for uid in uids}
    assert read_tombstones(f"{out}/test").values("uid") == {gone}


def write_duplicates(root: str, groups: dict[str, str]) -> None:
    """What `carrara dedup` leaves: of each sample its group."""
    manifest = read_manifest(root)
    folder = Path(root, "columns", "duplicates")
    for shard in manifest.shards:
        uids = [sample.uid for sample in iter_samples(root, shard)]
        group = pa.array([groups.get(uid) for uid in uids], pa.string())
        write_columns(
            root, "duplicates", shard.name, pa.table({"uid": uids, "duplicate_group": group})
        )
    record = ColumnsManifest(
        signal="duplicates",
        identity={},
        config_digest="0",
        corpus_digest=manifest.digest,
        files={file.name: storage.sha256(str(file)) for file in folder.glob("*.parquet")},
    )
    (folder / "manifest.json").write_text(record.model_dump_json())


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


@pytest.mark.parametrize("sequential", [True, False])
def test_a_damaged_source_shard_is_named_and_no_manifest_is_left(
    selected: str, tmp_path: Path, sequential: bool
) -> None:
    tar = Path(selected, "shards", "00001.tar")
    tar.write_bytes(tar.read_bytes()[:6000])
    with pytest.raises(DamagedError, match=r"00001\.tar"):
        run(selected, tmp_path / "out", sequential=sequential)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("sequential", [True, False])
def test_names_that_lead_out_of_a_tar_are_one_line(
    selected: str, tmp_path: Path, sequential: bool
) -> None:
    """In a corpus that somebody forged, with digests that fit."""
    choose(selected, "true", overwrite=True)
    manifest = read_manifest(selected)
    (shard, *others) = manifest.shards
    tar = Path(selected, "shards", f"{shard.name}.tar")
    with tarfile.open(tar) as opened:
        members = [(one.name, opened.extractfile(one).read()) for one in opened]  # type: ignore[union-attr]
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as opened:
        for name, content in members:
            key, _, extension = name.partition(".")
            forged = tarfile.TarInfo(f"{key}.x/../../{extension}" if extension == "txt" else name)
            forged.size = len(content)
            opened.addfile(forged, io.BytesIO(content))
    changed = {"num_bytes": tar.stat().st_size, "sha256": storage.sha256(str(tar))}
    shards = [shard.model_copy(update=changed), *others]
    forged_manifest = Manifest(**(dict(manifest) | {"shards": shards}))
    Path(selected, "manifest.json").write_text(forged_manifest.model_dump_json())
    choose(selected, "true", overwrite=True)
    with pytest.raises(DamagedError, match=rf"{shard.name}\.tar: damaged .*leads out") as caught:
        run(selected, tmp_path / "out", sequential=sequential)
    assert "\n" not in str(caught.value)


def test_no_shard_counts_that_was_made_of_a_picture_with_another_byte(
    selected: str, tmp_path: Path
) -> None:
    tar = Path(selected, "shards", "00001.tar")
    intact = tar.read_bytes()
    tar.write_bytes(intact[:600] + bytes([intact[600] ^ 1]) + intact[601:])
    with pytest.raises(DamagedError, match=r"00001\.tar"):
        run(selected, tmp_path / "out")
    assert not list((tmp_path / "out" / "shards").glob("*_stats.json"))
    tar.write_bytes(intact)
    run(selected, tmp_path / "out")
    run(selected, tmp_path / "other")
    assert read_manifest(str(tmp_path / "out")) == read_manifest(str(tmp_path / "other"))


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
        samples.add_sample(place % 3, place, PackedSample("", place, (b"members %d" % place,)))
    samples.flush()
    expected = [PackedSample(f"k{i}", i, (b"members %d" % i,)) for i in range(1, 20, 3)]
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
