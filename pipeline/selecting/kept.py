"""What a selection keeps of a corpus, by uid: what `pack` takes.

Reads   ROOT/selections/<name>.parquet .toml, ROOT/columns/duplicates/; where something was taken
        down, every shard's parquet, and for pictures taken down their hashes or the tars
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from infra import storage
from infra.config import digest_of
from infra.errors import InputError
from infra.progress import track
from infra.records import read_record
from pipeline.corpus import (
    SUCCESS,
    ColumnsManifest,
    Manifest,
    iter_selection,
    list_signals,
    read_rows,
    selection_url,
)
from pipeline.select import read_signals
from pipeline.selecting.splits import (
    DUPLICATES,
    WHOLE,
    Split,
    Uids,
    as_uids,
    assign,
    representatives,
)
from pipeline.takedown.tombstones import Tombstones


@dataclass(frozen=True)
class Kept:
    """Samples in order of their uids, each with its weight and the number of its split."""

    uids: Uids
    weights: NDArray[np.float32]
    split_numbers: NDArray[np.int64]
    num_refused: int
    """Selected, but taken down."""
    digest: str
    """16 hex digits over all that this follows from, the splits' shares aside."""


class _Origin(BaseModel):
    """What is needed of a selection's record."""

    corpus_digest: str


def read_kept(
    root: str, source: Manifest, selection: str, splits: Sequence[Split], tombstones: Tombstones
) -> Kept:
    """Raises InputError where the selection isn't of this corpus or keeps nothing."""
    uids, weights = _read_selected(root, source, selection)
    _check_any(uids, root, source, selection)
    digests = [source.digest, storage.sha256(selection_url(root, selection))]
    refused = np.zeros(len(uids), bool)
    if len(tombstones):
        refused = _is_refused(root, source, uids, tombstones)
        digests.append(tombstones.digest)
    uids, weights = uids[~refused], weights[~refused]
    _check_any(uids, root, source, selection)
    deciding = uids
    if splits != WHOLE and (duplicates := _duplicates(root, source)):
        deciding = representatives(root, duplicates, uids)
        digests.append(digest_of(duplicates.files))
    return Kept(uids, weights, assign(deciding, splits), int(refused.sum()), digest_of(digests))


def _read_selected(root: str, source: Manifest, selection: str) -> tuple[Uids, NDArray[np.float32]]:
    uids = [np.empty(0, np.dtype("V16"))]
    weights = [np.empty(0, np.float32)]  # of a corpus that was emptied there is no batch
    for batch in iter_selection(root, selection, ["uid", "keep", "weight"]):
        kept = batch.filter(batch["keep"])
        uids.append(as_uids(kept["uid"]))
        weights.append(kept["weight"].to_numpy())
    _check_origin(root, source, selection)
    all_uids, all_weights = np.concatenate(uids), np.concatenate(weights)
    order = np.argsort(all_uids, kind="stable")
    return all_uids[order], all_weights[order]


def _check_any(uids: Uids, root: str, source: Manifest, selection: str) -> None:
    if not len(uids):
        raise InputError(
            f"{root}: selection {selection!r} keeps none of {source.num_samples} samples; choose "
            "a milder policy"
        )


def _check_origin(root: str, source: Manifest, selection: str) -> None:
    toml = selection_url(root, selection, ".toml")
    again = f"run `carrara select {root} --name {selection}` again"
    if not storage.exists(toml):
        raise InputError(f"{toml}: missing, so the selection is not whole; {again}")
    of = read_record(toml, _Origin).corpus_digest
    if of != source.digest:
        raise InputError(
            f"{toml}: selects from another corpus (digest {of}, now {source.digest}); {again}"
        )


def _duplicates(root: str, source: Manifest) -> ColumnsManifest | None:
    """What `carrara dedup` found, if it was run; raises InputError if on another corpus."""
    if DUPLICATES not in list_signals(root):
        return None
    return read_signals(root, source, (DUPLICATES,))[DUPLICATES]


def _is_refused(
    root: str, source: Manifest, uids: Uids, tombstones: Tombstones
) -> NDArray[np.bool_]:
    """Which of the sorted uids fall under a tombstone by uid, URL, bytes or picture."""
    from pipeline.takedown.shard_forget import ContentFinder, has_hashes

    finder = ContentFinder(root, tombstones, (), has_hashes(root, source))
    refused = np.zeros(len(uids), bool)
    with track("pack: taken down", source.num_samples, "samples") as bar:
        for shard in source.shards:
            rows = read_rows(root, shard, ["uid", "url", "sha256", "status"])
            rows = rows.filter(pc.equal(rows["status"], SUCCESS)).drop_columns(["status"])
            found = [row["uid"] for row in rows.to_pylist() if tombstones.reason(**row)]
            found += finder(shard) if tombstones.has_pictures else ()
            theirs = as_uids(pa.array(found, pa.string()))
            ranks = np.minimum(np.searchsorted(uids, theirs), len(uids) - 1)
            refused[ranks[uids[ranks] == theirs]] = True
            bar.advance(shard.num_samples)
    return refused
