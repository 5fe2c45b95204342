"""One corpus as a run was given it: which samples, where their bytes lie, how often each counts.

Reads   ROOT/manifest.json, the shards' parquets, a selection if one is named; ROOT/receipts, where
        samples were taken down since the run began

A sample's place among those of its shard never changes while a run lasts. What `carrara forget`
takes down keeps its place too, marked as gone. Imports no torch, for `carrara why` asks too.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra import storage
from infra.errors import ConflictError, DamagedError
from infra.records import read_record
from pipeline import tar
from pipeline.corpus import (
    PLACE_SCHEMA,
    SUCCESS,
    Manifest,
    Shard,
    iter_selection,
    manifest_url,
    read_manifest,
    read_rows,
)
from pipeline.selecting.splits import Uids, as_uids
from pipeline.takedown.journal import Journal
from pipeline.takedown.receipts import ROWS_SCHEMA, read_receipts, receipt_url
from pipeline.takedown.run import Commit
from training.order import ONE, Ints
from training.streaming.shapes import Shape, nearest_shapes

NUM_READERS = 16
"""Parquets read at once."""

TAKEDOWN_PATIENCE_S = 600.0
"""For how long a takedown may be putting its files in place."""

T = TypeVar("T")


@dataclass(frozen=True)
class ShardTable:
    """The samples of a shard that the run was given, [n] each, in the shard's order."""

    name: str
    uids: Uids
    keys: pa.Array
    starts: Ints
    """Where a sample's members begin in the tar."""
    ends: Ints
    weights: Ints
    """In parts of ONE."""
    shapes: NDArray[np.uint8]
    is_gone: NDArray[np.bool_]
    """Taken down since the run began."""
    _lines: dict[frozenset[int], tuple[Ints, Ints]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of memory, about."""
        return 90 * len(self.uids)

    def uid(self, row: int) -> str:
        return bytes(self.uids[row]).hex()

    def rows_of(self, shapes: frozenset[int]) -> Ints:
        return self._line(shapes)[0]

    def weight_of(self, shapes: frozenset[int]) -> int:
        return int(self.weights[self.rows_of(shapes)].sum())

    def rows_at(self, shapes: frozenset[int], positions: Ints) -> Ints:
        """The rows in which these sums of the shapes' weights lie."""
        rows, ends = self._line(shapes)
        return rows[np.searchsorted(ends, positions, side="right")]

    def _line(self, shapes: frozenset[int]) -> tuple[Ints, Ints]:
        """The rows, and the sums of their weights."""
        if shapes not in self._lines:
            rows = np.flatnonzero(np.isin(self.shapes, list(shapes)))
            self._lines[shapes] = (rows, self.weights[rows].cumsum())
        return self._lines[shapes]

    def interval_of(self, shapes: frozenset[int], row: int) -> tuple[int, int]:
        """The sums of weights before and after a row."""
        rows = self.rows_of(shapes)
        end = int(self.weights[rows[rows <= row]].sum())
        return end - int(self.weights[row]), end

    def living_after(self, shapes: frozenset[int], row: int, gone: frozenset[str]) -> int | None:
        """The first row after this one, going round, that is not among those gone."""
        rows = self.rows_of(shapes)
        is_gone = np.zeros(len(self.uids), np.bool_)
        for candidate in np.flatnonzero(self.is_gone):
            is_gone[candidate] = self.uid(int(candidate)) in gone
        rows = rows[~is_gone[rows]]
        if not len(rows):
            return None
        return int(rows[np.searchsorted(rows, row) % len(rows)])


@dataclass(frozen=True)
class _Selected:
    """What a selection keeps, in order of uids."""

    uids: Uids
    weights: NDArray[np.float32]

    def weights_of(self, uids: Uids) -> NDArray[np.float32]:
        """Zero for those that it does not keep."""
        ranks = np.minimum(np.searchsorted(self.uids, uids), max(len(self.uids) - 1, 0))
        if not len(self.uids):
            return np.zeros(len(uids), np.float32)
        return np.where(self.uids[ranks] == uids, self.weights[ranks], np.float32(0))


class Catalogue:
    """Any thread may ask for a shard's table; they are kept while there is room."""

    def __init__(
        self,
        root: str,
        *,
        selection: str | None = None,
        held_out: float = 0.0,
        shapes: tuple[Shape, ...] = ((1, 1),),
        born: str | None = None,
        cache_bytes: int = 1 << 28,
    ) -> None:
        """`born`: the digest that the corpus had when the run began; None: it begins now."""
        self.root, self.selection = root, selection
        self._held_out, self._shapes, self._cache_bytes = held_out, shapes, cache_bytes
        self._lock = threading.RLock()
        self._tables: OrderedDict[int, ShardTable] = OrderedDict()
        self._table_bytes = 0
        self._version = storage.version(manifest_url(root))
        self.manifest = read_manifest(root)
        self.born = born or self.manifest.digest
        self._takedowns = takedowns_since(root, self.manifest, self.born)
        self._selected = None if selection is None else _read_selected(root, selection)

    @property
    def gone(self) -> frozenset[str]:
        """uids of what was taken down since the run began."""
        return self._takedowns[-1].gone if self._takedowns else frozenset()

    def gone_in(self, digest: str) -> frozenset[str]:
        """The same, of a state that the corpus had since; none of any other."""
        states = (one.gone for one in self._takedowns if one.digest == digest)
        return next(states, frozenset())

    @cached_property
    def tallies(self) -> Ints:
        """[num_shapes, num_shards]: the summed weights of the samples of each."""
        tallies = np.zeros((len(self._shapes), len(self.manifest.shards)), np.int64)
        with ThreadPoolExecutor(NUM_READERS) as pool:
            tables = pool.map(self.table, range(len(self.manifest.shards)))
            for number, table in enumerate(tables):
                np.add.at(tallies[:, number], table.shapes, table.weights)
        return tallies

    def table(self, shard: int) -> ShardTable:
        with self._lock:
            if shard in self._tables:
                self._tables.move_to_end(shard)
                return self._tables[shard]
        table = self.while_taken_down(lambda: self._read(self.manifest.shards[shard]))
        with self._lock:
            if shard not in self._tables:
                self._tables[shard] = table
                self._table_bytes += table.num_bytes
            while self._table_bytes > self._cache_bytes:
                self._table_bytes -= self._tables.popitem(last=False)[1].num_bytes
        return table

    def find(self, uid: str) -> tuple[int, int] | None:
        """The shard and the row of a sample."""
        wanted = np.frombuffer(bytes.fromhex(uid), "V16")
        for number in range(len(self.manifest.shards)):
            found = np.flatnonzero(self.table(number).uids == wanted)
            if len(found):
                return number, int(found[0])
        return None

    def has_captions(self) -> bool:
        """Whether any sample has a caption with anything in it."""
        for shard in self.manifest.shards:
            rows = read_rows(self.root, shard, ["caption", "status"])
            captions = rows.filter(pc.equal(rows["status"], SUCCESS))["caption"]
            if pc.any(pc.not_equal(pc.utf8_trim_whitespace(captions), "")).as_py():
                return True
        return False

    def captions(self) -> list[str]:
        """Of all samples, each once, in the corpus's order."""
        captions: dict[str, None] = {}
        for number, shard in enumerate(self.manifest.shards):
            rows = read_rows(self.root, shard, ["key", "caption", "status"])
            table = self.table(number)
            rows = rows.filter(
                pc.and_(
                    pc.is_in(rows["key"], value_set=table.keys), pc.equal(rows["status"], SUCCESS)
                )
            )
            captions |= dict.fromkeys(caption or "" for caption in rows["caption"].to_pylist())
        return list(captions)

    # Takedowns

    def refresh(self) -> bool:
        """Follow a takedown, if there was one since the last look; says whether there was."""
        version = storage.version(manifest_url(self.root))
        with self._lock:
            if version == self._version:
                return False
            manifest = read_manifest(self.root)
            changed = manifest.digest != self.manifest.digest
            if changed:
                self._takedowns = takedowns_since(self.root, manifest, self.born)
                self.manifest = manifest
                self._tables.clear()
                self._table_bytes = 0
            self._version = version
            return changed

    def while_taken_down(self, read: Callable[[], T]) -> T:
        """What `read` gives; while a takedown is putting its files in place, some are new and some
        old, so that what seems to be damage is read again."""
        deadline = time.monotonic() + TAKEDOWN_PATIENCE_S
        while True:
            before = self.manifest
            try:
                return read()
            except DamagedError:
                # In this order: what is no longer under way by now has changed the manifest.
                is_under_way = Journal(self.root).is_committed
                self.refresh()
                is_other = self.manifest is not before
                if not (is_other or is_under_way) or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    # One shard

    def _read(self, shard: Shard) -> ShardTable:
        columns = ["key", "uid", "status", *PLACE_SCHEMA.names]
        if len(self._shapes) > 1:
            columns += ["width", "height"]
        rows = read_rows(self.root, shard, columns)
        restored = _restored(self._takedowns)
        theirs = restored.filter(pc.equal(restored["shard"], shard.name))
        is_there = np.asarray(pc.equal(rows["status"], SUCCESS))
        is_gone = np.asarray(pc.is_in(rows["key"], value_set=theirs["key"].combine_chunks()))
        starts, ends = _extents(rows, is_there, shard.num_bytes)
        given = np.flatnonzero(is_there | is_gone)
        rows = rows.take(given)
        uids = as_uids(rows["uid"])
        weights, shapes = self._weights(uids, theirs), self._shapes_of(rows, theirs)
        counts = (weights > 0) & ~_is_held_out(uids, self._held_out)
        given = given[counts]
        return ShardTable(
            name=shard.name,
            uids=uids[counts],
            keys=rows["key"].filter(pa.array(counts)).combine_chunks(),
            starts=starts[given],
            ends=ends[given],
            weights=weights[counts],
            shapes=shapes[counts],
            is_gone=is_gone[given],
        )

    def _weights(self, uids: Uids, restored: pa.Table) -> Ints:
        if self._selected is None:
            return np.full(len(uids), ONE)
        weights = self._selected.weights_of(uids)
        for row in restored.to_pylist():
            if self.selection in row["kept_by"]:
                weight = row["weights"][row["kept_by"].index(self.selection)]
                weights[uids == np.frombuffer(bytes.fromhex(row["uid"]), "V16")] = weight
        return np.round(weights.astype(np.float64) * ONE).astype(np.int64)

    def _shapes_of(self, rows: pa.Table, restored: pa.Table) -> NDArray[np.uint8]:
        if len(self._shapes) == 1:
            return np.zeros(len(rows), np.uint8)
        sides = {row["key"]: (row["width"], row["height"]) for row in restored.to_pylist()}
        keys, widths, heights = (rows[name].to_pylist() for name in ("key", "width", "height"))
        pairs = zip(keys, widths, heights, strict=True)
        both = np.array(
            [sides.get(key, (width, height)) for key, width, height in pairs], np.float64
        ).reshape(-1, 2)
        return nearest_shapes(both[:, 0], both[:, 1], self._shapes)


def _extents(rows: pa.Table, is_there: NDArray[np.bool_], tar_bytes: int) -> tuple[Ints, Ints]:
    """Where the members of each sample begin and end in the tar; -1 where there are none."""
    starts, ends = np.full(len(rows), -1), np.full(len(rows), -1)
    offsets = rows["image_offset"].filter(pa.array(is_there)).to_numpy() - tar.BLOCK
    starts[is_there], ends[is_there] = offsets, np.append(offsets[1:], tar_bytes)[: len(offsets)]
    return starts, ends


def _is_held_out(uids: Uids, share: float) -> NDArray[np.bool_]:
    """As `training.held_out.is_held_out` says of each."""
    firsts = uids.view(">u4").reshape(-1, 4)[:, 0].astype(np.float64)
    return firsts < share * 2**32


def _read_selected(root: str, selection: str) -> _Selected:
    uids, weights = [np.empty(0, "V16")], [np.empty(0, np.float32)]
    for batch in iter_selection(root, selection, ["uid", "keep", "weight"]):
        kept = batch.filter(batch["keep"])
        uids.append(as_uids(kept["uid"]))
        weights.append(kept["weight"].to_numpy().astype(np.float32))
    all_uids, all_weights = np.concatenate(uids), np.concatenate(weights)
    order = np.argsort(all_uids, kind="stable")
    return _Selected(all_uids[order], all_weights[order])


@dataclass(frozen=True)
class Takedown:
    """One that came after the run had begun."""

    digest: str
    """Of the corpus after it."""
    rows: pa.Table
    """What it took down that the run may have been given, as its receipt says."""
    gone: frozenset[str]
    """uids of what it and those before it took down."""


def takedowns_since(root: str, manifest: Manifest, digest: str) -> list[Takedown]:
    """What has happened to the corpus since it had that digest, oldest first; raises ConflictError
    where that was anything else."""
    steps: list[tuple[str, str]] = []
    now = manifest.digest
    if now != digest:
        for name, before, after in _takedowns(root):
            if now != digest and after == now:
                steps.append((name, after))
                now = before
    if now != digest:
        raise ConflictError(
            f"{root}: the run was on another state of the corpus (digest {digest}, now "
            f"{manifest.digest}); give the corpus as it was, or another RUN"
        )
    found: list[Takedown] = []
    gone: frozenset[str] = frozenset()
    for name, after in reversed(steps):
        rows = storage.read_table(receipt_url(root, name, ".rows.parquet"))
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        gone |= frozenset(rows["uid"].to_pylist())
        found.append(Takedown(after, rows, gone))
    return found


def _restored(takedowns: list[Takedown]) -> pa.Table:
    """Receipts of earlier versions lack the columns that came later."""
    none = ROWS_SCHEMA.empty_table()
    return pa.concat_tables([none, *(one.rows for one in takedowns)], promote_options="default")


def _takedowns(root: str) -> Iterator[tuple[str, str, str]]:
    """Name and the corpus's digests before and after, newest first; one that is being put in place
    has no receipt yet."""
    journal = Journal(root)
    if journal.is_committed:
        commit = read_record(journal.url("commit.json"), Commit)
        yield commit.plan.receipt, commit.before.digest, commit.after.digest
    for receipt in reversed(read_receipts(root)):
        change = receipt.corpus_digest
        if receipt.found and change.before and change.after:
            yield receipt.name, change.before, change.after


def only_taken_down(root: str, digest: str) -> bool:
    """Whether all that has happened to a corpus since it had that digest are takedowns."""
    try:
        takedowns_since(root, read_manifest(root), digest)
    except ConflictError:
        return False
    return True
