"""What can be asked of an index's rows: their metadata and the corpus's scores, as one table.

Reads   ROOT/columns/<signal>/{shard}.parquet beside the index's metadata

Scores are joined by uid, so they may be of more samples or of fewer than the index; what was not
scored is null. Of two columns of one name the metadata's counts, then the signal's that comes first
by name. A column that was asked for stays in memory: of ten million rows a float takes 40 MB.
"""

from collections import OrderedDict
from functools import cached_property
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage
from pipeline.corpus import list_signals
from retrieval.live.filters import check_columns, parse_where, rows_where
from retrieval.live.metadata import Metadata

NUM_KEPT = 64
"""Answers kept, a bit a row each."""


class Columns:
    """Of one state of the metadata and of the scores."""

    def __init__(self, root: str, metadata: Metadata) -> None:
        self._root, self._metadata = root, metadata
        self._lock = Lock()
        self._scores: dict[str, pa.ChunkedArray] = {}
        self._answers: OrderedDict[str, np.ndarray] = OrderedDict()

    @cached_property
    def names(self) -> list[str]:
        """All that an expression may name."""
        return [*self._metadata.names, *self._signals]

    @cached_property
    def complete(self) -> frozenset[str]:
        """The signals that were scored to their end."""
        return frozenset(
            signal
            for signal in list_signals(self._root)
            if storage.exists(storage.join(self._root, "columns", signal, "manifest.json"))
        )

    def select(self, where: str) -> np.ndarray:
        """bool [num_rows]: where this SQL expression is true.

        Raises ConfigError for one that can't be run, naming the column that there is not.
        """
        with self._lock:
            kept = self._answers.get(where)
        if kept is None:  # computed without the lock: nobody waits for another's slow expression
            named = parse_where(where)
            check_columns(where, named, self.names)
            kept = np.packbits(rows_where(where, self.table(named)))
        with self._lock:
            self._answers[where] = kept
            self._answers.move_to_end(where)
            while len(self._answers) > NUM_KEPT:
                self._answers.popitem(last=False)
        return np.unpackbits(kept, count=self._metadata.num_rows).astype(bool)

    def table(self, named: set[str]) -> pa.Table:
        """These columns, a row each row of the index; whether letters are capital is all one."""
        folded = {name.lower() for name in named}
        mine = [name for name in self._metadata.names if name.lower() in folded]
        theirs = [name for name in self._signals if name.lower() in folded]
        # At least one column, for the number of rows.
        parts = [table for _, table in self._metadata.tables(mine or ["uid"])]
        table = pa.concat_tables(parts, promote_options="permissive")
        for name in theirs:
            table = table.append_column(name, self._score(name))
        return table

    def _score(self, name: str) -> pa.ChunkedArray:
        if name not in self._scores:
            signal = self._signals[name]
            chunks = [
                self._of_part(signal, name, shard, table["uid"])
                for shard, (_, table) in zip(
                    self._metadata.shards, self._metadata.tables(["uid"]), strict=True
                )
            ]
            typed = [chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)]
            kind = typed[0] if typed else pa.null()
            self._scores[name] = pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
        return self._scores[name]

    def _of_part(self, signal: str, name: str, shard: str, uids: pa.ChunkedArray) -> pa.Array:
        url = storage.join(self._root, "columns", signal, f"{shard}.parquet")
        if not storage.exists(url):
            return pa.nulls(len(uids))
        scores = storage.read_table(url, ["uid", name])
        places = pc.index_in(uids, value_set=scores["uid"].combine_chunks())
        return scores[name].take(places).combine_chunks()

    @cached_property
    def _signals(self) -> dict[str, str]:
        """Whose a column is."""
        found: dict[str, str] = {}
        for signal in list_signals(self._root):
            for name in self._columns_of(signal):
                found.setdefault(name, signal)
        mine = {name.lower() for name in self._metadata.names}
        return {name: signal for name, signal in found.items() if name.lower() not in mine}

    def _columns_of(self, signal: str) -> list[str]:
        for shard in self._metadata.shards:
            url = storage.join(self._root, "columns", signal, f"{shard}.parquet")
            if storage.exists(url):
                with storage.open_read(url) as file:
                    names: list[str] = pq.read_schema(file).names
                return [name for name in names if name != "uid"]
        return []
