"""What others' shards and lists may hold: each is read, or refused in one line; nothing else."""

import hashlib
from collections import Counter
from pathlib import Path

from benchmarks.malformed_files import parquets, tars
from infra.errors import CarraraError, DamagedError, InputError
from pipeline.corpus import Shard, iter_samples, read_rows
from pipeline.pair_rows import PairColumns
from pipeline.pairs import open_pairs

NUM = 400


def test_malformed_tars_are_read_or_named(tmp_path: Path) -> None:
    assert read_tars(tmp_path, NUM).keys() == {"read", "refused"}


def test_malformed_parquets_are_read_or_named(tmp_path: Path) -> None:
    assert read_parquets(tmp_path, NUM).keys() == {"read", "refused"}


def test_malformed_lists_are_read_or_named(tmp_path: Path) -> None:
    assert read_lists(tmp_path, NUM).keys() == {"read", "refused"}


def read_tars(folder: Path, num: int) -> Counter[str]:
    """As shards whose manifest has the malformed bytes' own digest: a hostile publisher's."""
    counts = Counter[str]()
    for data in tars(num):
        shard = shard_of(folder, data, ".tar")
        try:
            num_read = sum(len(sample.image) >= 0 for sample in iter_samples(str(folder), shard))
            assert num_read == shard.num_samples
            counts["read"] += 1
        except DamagedError as error:
            counts["refused"] += 1
            assert_one_line(error)
    return counts


def read_parquets(folder: Path, num: int) -> Counter[str]:
    counts = Counter[str]()
    for data in parquets(num):
        shard = shard_of(folder, data, ".parquet")
        try:
            read_rows(str(folder), shard, ["key", "url", "status"])
            counts["read"] += 1
        except DamagedError as error:
            counts["refused"] += 1
            assert_one_line(error)
    return counts


def read_lists(folder: Path, num: int) -> Counter[str]:
    counts = Counter[str]()
    for data in parquets(num, seed=1):
        path = folder / "list.parquet"
        path.write_bytes(data)
        try:
            pairs = open_pairs(str(path), PairColumns("url", "caption", ()))
            assert sum(table.num_rows for table in pairs.tables()) >= 0
            counts["read"] += 1
        except InputError as error:
            counts["refused"] += 1
            assert_one_line(error)
    return counts


def shard_of(folder: Path, data: bytes, suffix: str) -> Shard:
    path = folder / "shards" / f"00000{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return Shard(
        name="00000", num_samples=1, num_bytes=len(data), sha256=digest, rows_sha256=digest
    )


def assert_one_line(error: CarraraError) -> None:
    assert "\n" not in str(error)
