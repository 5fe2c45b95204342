"""Splits: which part of a corpus trains a model, and which tests it. `pack --splits` asks.

A sample's split follows from its uid and the shares alone, so it stays the same whatever else is
kept, in whatever order and by whatever seed. Copies go together: where `carrara dedup` was run,
what decides for a whole group is the smallest uid in it.

Reads   ROOT/columns/duplicates/*.parquet, where they are
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra import storage
from infra.errors import ConfigError
from pipeline.corpus import ColumnsManifest

DUPLICATES = "duplicates"
"""The columns that `carrara dedup` writes."""

Uids = NDArray[np.void]
"""[n] of 16 bytes each."""


@dataclass(frozen=True)
class Split:
    name: str
    """Also of its folder within OUT; empty: OUT itself holds all that is kept."""
    share: float


WHOLE = (Split("", 1.0),)


def parse_splits(texts: Sequence[str]) -> tuple[Split, ...]:
    """NAME=SHARE of each split; none: the whole. Raises ConfigError for what is no such thing."""
    if not texts:
        return WHOLE
    splits = tuple(map(_parse, texts))
    names = [split.name for split in splits]
    if len(set(names)) < len(names):
        raise ConfigError(f"splits {' '.join(texts)}: a name comes twice; expected each once")
    total = sum(split.share for split in splits)
    if abs(total - 1) > 1e-9:
        raise ConfigError(
            f"splits {' '.join(texts)}: the shares sum to {total:g}; expected 1, as in "
            "train=0.98 test=0.02"
        )
    return splits


def _parse(text: str) -> Split:
    name, _, share = text.partition("=")
    if not (re.fullmatch(r"[A-Za-z]\w*", name) and re.fullmatch(r"0?\.\d+|1(\.0*)?", share)):
        raise ConfigError(
            f"splits {text!r}: expected NAME=SHARE, a name of letters and digits and a share of at "
            "most 1, as in train=0.98"
        )
    if float(share) == 0:
        raise ConfigError(f"splits {text!r}: expected a share above 0")
    return Split(name, float(share))


def assign(uids: Uids, splits: Sequence[Split]) -> NDArray[np.int64]:
    """The number of each uid's split: where its last 64 bits fall among the cumulative shares.

    A uid is a part of sha256, so its bits are as good as drawn by chance.
    """
    draws = uids.view(">u8").reshape(-1, 2)[:, 1].astype(np.uint64)
    shares = np.cumsum([split.share for split in splits])[:-1]
    bounds = np.array([min(int(share * 2**64), 2**64 - 1) for share in shares], np.uint64)
    return np.searchsorted(bounds, draws, side="right")


def representatives(root: str, duplicates: ColumnsManifest, uids: Uids) -> Uids:
    """For each of the sorted uids the smallest one of its group of copies, or itself."""
    grouped = pa.concat_tables(list(_grouped(root, duplicates)))
    smallest = grouped.group_by("duplicate_group").aggregate([("uid", "min")])
    grouped = grouped.join(smallest, "duplicate_group")
    theirs, first = as_uids(grouped["uid"]), as_uids(grouped["uid_min"])
    found = uids.copy()
    if len(uids) and len(theirs):
        ranks = np.minimum(np.searchsorted(uids, theirs), len(uids) - 1)
        is_there = uids[ranks] == theirs
        found[ranks[is_there]] = first[is_there]
    return found


def _grouped(root: str, duplicates: ColumnsManifest) -> Iterator[pa.Table]:
    """uid and duplicate_group of what is in a group."""
    for name in sorted(duplicates.files):
        url = storage.join(root, "columns", DUPLICATES, name)
        table = storage.read_table(url, ["uid", "duplicate_group"]).replace_schema_metadata(None)
        yield table.filter(pc.is_valid(table["duplicate_group"]))


def as_uids(texts: pa.ChunkedArray | pa.Array) -> Uids:
    """32 hex digits each -> 16 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(texts.to_pylist())), np.dtype("V16"))
