"""Which rows of an index were taken down, by the corpus's tombstones.

Reads   ROOT/tombstones.parquet

A row falls under a tombstone by its uid, its URL or domain, or the sha256 of its bytes as fetched:
what `forget` takes out later, at once.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.takedown.tombstones import Tombstones
from retrieval.live.metadata import Metadata


def removed_rows(metadata: Metadata, tombstones: Tombstones) -> np.ndarray:
    """[num_rows] bool."""
    removed = np.zeros(metadata.num_rows, bool)
    if tombstones.values("uid"):
        removed[metadata.rows_of(sorted(tombstones.values("uid")))] = True
    if any(tombstones.values(kind) for kind in ("url", "domain", "sha256")):
        for rows in _matched(metadata, tombstones):
            removed[rows] = True
    return removed


def _matched(metadata: Metadata, tombstones: Tombstones) -> Iterator[np.ndarray]:
    digests = pa.array(sorted(tombstones.values("sha256")), pa.string())
    for start, table in metadata.tables(["url", "sha256"]):
        found = pc.is_in(table["sha256"].cast(pa.string()), value_set=digests)
        yield start + np.flatnonzero(found.to_numpy())
        if tombstones.values("url") or tombstones.values("domain"):
            urls = table["url"].to_pylist()
            places = [i for i, url in enumerate(urls) if tombstones.matched_by(url=url)]
            yield start + np.array(places, np.int64)
