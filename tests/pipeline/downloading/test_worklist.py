"""How a list is cut, and which shards of it are done."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import storage
from pipeline.corpus import Shard, shard_files
from pipeline.downloading import worklist
from pipeline.downloading.pair_rows import PairColumns
from pipeline.downloading.pairs import open_pairs
from pipeline.downloading.worklist import Plan, ShardRecord


def plan_of(root: str, urls: list[str], rows_a_slice: int) -> Plan:
    pq.write_table(pa.table({"url": urls}), f"{root}/list.parquet")
    pairs = open_pairs(f"{root}/list.parquet", PairColumns("url", ""))
    num_rows = worklist.write_slices(root, pairs, rows_a_slice)
    config = {"input_digest": "x", "config": {}, "config_digest": "x"}
    return Plan(**config, num_rows=num_rows, rows_a_slice=rows_a_slice)


def write_done(root: str, num: int) -> list[Shard]:
    shards = [
        Shard(name=f"{number:05d}", num_samples=1, num_bytes=1, sha256="", rows_sha256="")
        for number in range(num)
    ]
    (Path(root) / "shards").mkdir()
    for shard in shards:
        for file in shard_files(shard.name):
            (Path(root) / "shards" / file).write_bytes(b"x")
        worklist.write_record(root, ShardRecord(shard=shard, counts={"success": 1}))
    return shards


def test_duplicates_are_places_in_their_slices(tmp_path: Path) -> None:
    urls = [f"http://a/{name}" for name in "abcabdbbx"]
    plan = plan_of(str(tmp_path), urls, rows_a_slice=4)
    slices = worklist.slices(str(tmp_path), plan)
    assert [part.duplicates.tolist() for part in slices] == [[3], [0, 2, 3], []]
    assert slices[0].duplicates.itemsize == 4  # the driver holds those of the whole list


def test_shards_whose_files_are_gone_or_cut_are_made_again(tmp_path: Path) -> None:
    root = str(tmp_path)
    plan = plan_of(root, ["http://a/1"], 1)
    shards = write_done(root, 5)
    storage.remove(f"{root}/shards/00001.tar")
    (tmp_path / "shards" / "00002.tar").write_bytes(b"xx")
    storage.remove(f"{root}/shards/00003.parquet")
    assert list(worklist.read_records(root, plan)) == ["00000", "00004"]
    # Shards of the corpus that is there are not the plan's to look after.
    assert list(worklist.read_records(root, plan, shards[1:3])) == [
        "00000",
        "00001",
        "00002",
        "00004",
    ]


@pytest.mark.parametrize("is_retry", [False, True])
def test_to_resume_takes_no_more_comparisons_than_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_retry: bool
) -> None:
    root, num = str(tmp_path), 300
    plan = plan_of(root, ["http://a/1"], 1)
    shards = write_done(root, num)
    unchanged = shards if is_retry else []
    compare, num_compared = Shard.__eq__, 0

    def counted(one: Shard, other: object) -> bool:
        nonlocal num_compared
        num_compared += 1
        return compare(one, other)

    monkeypatch.setattr(Shard, "__eq__", counted)
    assert len(worklist.read_records(root, plan, unchanged)) == num
    assert num_compared <= num
