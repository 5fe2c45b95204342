"""Malformed tars and parquets by the thousand, made from sound ones; the same seed, the same.

tars()      shards' tars: cut, flipped, spliced, with headers that lie, links, odd members
parquets()  shards' parquets and lists: the same, and tables of other types than expected
"""

import hashlib
import io
import json
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzzing import num_and_seed
from benchmarks.machine import resident_bytes
from infra.errors import CarraraError, DamagedError, InputError
from pipeline.corpus import Shard, iter_samples, read_rows
from pipeline.downloading.pair_rows import PairColumns
from pipeline.downloading.pairs import open_pairs

MAX_GROWTH_BYTES = 64 << 20
"""Over the second half: Arrow's and Python's pools breathe."""

Mutation = Callable[[np.random.Generator, bytes], bytes]


def tars(num: int, seed: int = 0) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for number in range(num):
        make = (_sound_tar, _odd_tar)[number % 2]
        yield mutated(rng, make(rng))


def parquets(num: int, seed: int = 0) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for number in range(num):
        table = (_sound_table, _odd_table)[number % 2](rng)
        file = io.BytesIO()
        pq.write_table(table, file, compression=str(rng.choice(["none", "zstd", "snappy"])))
        data = file.getvalue()
        yield data if rng.random() < 0.2 else mutated(rng, data)


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """With one to three mutations."""
    for _ in range(int(rng.integers(1, 4))):
        if data:
            data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, data)
    return data


def _flip_bits(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 20))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _cut_front(rng: np.random.Generator, data: bytes) -> bytes:
    return data[int(rng.integers(len(data))) :]


def _blank(rng: np.random.Generator, data: bytes) -> bytes:
    start = int(rng.integers(len(data)))
    size = min(int(rng.integers(1, 2000)), len(data) - start)
    return data[:start] + bytes([int(rng.choice([0, 255]))]) * size + data[start + size :]


def _splice(rng: np.random.Generator, data: bytes) -> bytes:
    start, other = (int(value) for value in rng.integers(0, len(data), 2))
    piece = data[start : start + int(rng.integers(1, 2000))]
    return data[:other] + piece + data[other:]


def _noise(rng: np.random.Generator, data: bytes) -> bytes:
    start = int(rng.integers(len(data)))
    return data[:start] + rng.bytes(int(rng.integers(1, 600))) + data[start:]


MUTATIONS: tuple[Mutation, ...] = (_flip_bits, _cut, _cut_front, _blank, _splice, _noise)


def _sound_tar(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(int(rng.integers(1, 4))):
            key = f"00000{number:04d}"
            metadata = json.dumps({"uid": f"{number:032x}", "key": key}).encode()
            for suffix, data in (("jpg", rng.bytes(300)), ("txt", b"caption"), ("json", metadata)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _odd_tar(rng: np.random.Generator) -> bytes:
    """Members that no shard has: links, folders, paths that climb, sizes that lie, deep JSON."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        name = str(
            rng.choice(["../../etc/passwd", "/etc/passwd", "a" * 300, "ü.jpg", ".", "000000000"])
        )
        member = tarfile.TarInfo(name)
        member.type = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.REGTYPE][
            int(rng.integers(4))
        ]
        member.linkname = "/etc/passwd"
        tar.addfile(member, io.BytesIO())
        for suffix, data in (
            ("jpg", b""),
            ("txt", b"\xff\xfe"),
            ("json", [b"[" * 100_000, b"null", b"{}", b'{"uid": 7}'][int(rng.integers(4))]),
        ):
            member = tarfile.TarInfo(f"000000000.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _sound_table(rng: np.random.Generator) -> pa.Table:
    num = int(rng.integers(1, 50))
    return pa.table(
        {
            "key": [f"00000{number:04d}" for number in range(num)],
            "url": [f"http://host/{number}" for number in range(num)],
            "caption": [f"caption {number}" for number in range(num)],
            "status": ["success"] * num,
        }
    )


def _odd_table(rng: np.random.Generator) -> pa.Table:
    """The right names, other types."""
    num = int(rng.integers(0, 20))
    kinds = [pa.int64(), pa.binary(), pa.list_(pa.string()), pa.float32(), pa.null(), pa.date32()]
    return pa.table(
        {
            name: pa.nulls(num, kinds[int(rng.integers(len(kinds)))])
            for name in ("key", "url", "caption", "status")
        }
    )


def read_tars(folder: Path, num: int, seed: int = 0) -> Counter[str]:
    """As shards whose manifest has the malformed bytes' own digest: a hostile publisher's."""

    def read(shard: Shard) -> None:
        num_read = sum(len(sample.image) >= 0 for sample in iter_samples(str(folder), shard))
        assert num_read == shard.num_samples

    shards = (_shard_of(folder, data, ".tar") for data in tars(num, seed))
    return Counter(_outcome(partial(read, shard), DamagedError) for shard in shards)


def read_parquets(folder: Path, num: int, seed: int = 0) -> Counter[str]:
    def read(shard: Shard) -> None:
        read_rows(str(folder), shard, ["key", "url", "status"])

    shards = (_shard_of(folder, data, ".parquet") for data in parquets(num, seed))
    return Counter(_outcome(partial(read, shard), DamagedError) for shard in shards)


def read_lists(folder: Path, num: int, seed: int = 0) -> Counter[str]:
    path = folder / "list.parquet"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        pairs = open_pairs(str(path), PairColumns("url", "caption", ()))
        assert sum(table.num_rows for table in pairs.tables()) >= 0

    lists = parquets(num, seed + 1)
    return Counter(_outcome(partial(read, data), InputError) for data in lists)


def _outcome(read: Callable[[], None], refusal: type[CarraraError]) -> str:
    try:
        read()
    except refusal as error:
        return "refused" if "\n" not in str(error) else "in many lines"
    return "read"


def _shard_of(folder: Path, data: bytes, suffix: str) -> Shard:
    path = folder / "shards" / f"00000{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return Shard(
        name="00000", num_samples=1, num_bytes=len(data), sha256=digest, rows_sha256=digest
    )


def main() -> None:
    arguments = num_and_seed(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for read in (read_tars, read_parquets, read_lists):
            start = time.monotonic()
            half = arguments.num // 2
            counts = read(Path(folder), half, arguments.seed)
            at_half = resident_bytes()
            counts += read(Path(folder), arguments.num - half, arguments.seed + 2)
            growth = resident_bytes() - at_half
            told = ", ".join(f"{num} {outcome}" for outcome, num in counts.most_common())
            print(f"{read.__name__}: {told} in {time.monotonic() - start:.0f} s", end="; ")
            print(f"memory grew by {growth / 1e6:.1f} MB over the second half", flush=True)
            if growth > MAX_GROWTH_BYTES:
                sys.exit(f"memory grew by more than {MAX_GROWTH_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
