"""An index's rows by their URLs and domains, as tombstones keep them: by digests.

Every address is brought into its plain form and hashed once, when the first tombstone of an address
is met: of ten million that takes 120 MB, and a quarter of a minute on 2 cores. From then on a URL
more is a look-up; a domain more is held against each host once, 6 microseconds each.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.takedown.tombstones import Tombstones, url_digest
from retrieval.live.metadata import uint64_keys

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROWS_AT_ONCE = 1 << 20

PLAIN = (
    r"https?://[a-z0-9.-]*[a-z0-9]/[A-Za-z0-9_.~/:@!$&()*+,;=-]*"
    r"(\?[A-Za-z0-9_.~/:@!$&()*+,;=?-]+)?"
)
"""Addresses that are, but for their scheme, in `plain_url`'s form as they stand; nine in ten."""

PLAIN_SQL = f"""
    SELECT number, sha256(substr(url, strpos(url, '://') + 3)) AS digest, split_part(url, '/', 3)
    AS host FROM addresses WHERE regexp_full_match(url, '{PLAIN}')
"""


class Addresses:
    """Of all rows, in their order; null where there is none."""

    def __init__(self, read: Callable[[], pa.ChunkedArray]) -> None:
        self._read = read

    def rows(self, tombstones: Tombstones) -> np.ndarray:
        """Numbers of the rows whose URL or domain is refused."""
        keys, codes, hosts = self._digested
        by_domain = np.zeros(0, np.int64)
        if tombstones.values("domain"):
            # Of domains alone: the address http://HOST/ may be refused by itself.
            domains = Tombstones(stone for stone in tombstones.stones if stone.kind == "domain")
            refused = [bool(domains.matched_by(url=f"http://{host}/")) for host in hosts]
            by_domain = np.flatnonzero(np.array([*refused, False])[codes])
        values = pa.chunked_array([pa.array(sorted(tombstones.values("url")), pa.string())])
        candidates = np.flatnonzero(np.isin(keys, uint64_keys(values)))
        by_url = [row for row in candidates if tombstones.matched_by(url=self._urls[row].as_py())]
        return np.concatenate([by_domain, np.array(by_url, np.int64)])

    @cached_property
    def _urls(self) -> pa.ChunkedArray:
        return self._read()

    @cached_property
    def _digested(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Each row's key of its URL, its host's number (-1: none), and the hosts."""
        import duckdb

        keys = np.zeros(len(self._urls), np.uint64)
        codes = np.full(len(self._urls), -1, np.int32)
        numbers: dict[str, int] = {}
        with duckdb.connect() as connection:
            connection.execute("SET enable_progress_bar = false")
            for start in range(0, len(self._urls), ROWS_AT_ONCE):
                rows, digests, hosts = _digests(connection, self._urls.slice(start, ROWS_AT_ONCE))
                keys[start + rows] = uint64_keys(digests)
                encoded = hosts.combine_chunks().dictionary_encode()
                known = [
                    numbers.setdefault(host, len(numbers))
                    for host in encoded.dictionary.to_pylist()
                ]
                codes[start + rows] = np.array([*known, -1])[encoded.indices.to_numpy()]
        return keys, codes, list(numbers)


def _digests(
    connection: "DuckDBPyConnection", urls: pa.ChunkedArray
) -> tuple[np.ndarray, pa.ChunkedArray, pa.ChunkedArray]:
    """Row numbers, their URLs' digests and hosts: plain ones by DuckDB, each other by itself."""
    table = pa.table({"url": urls, "number": np.arange(len(urls))})
    connection.register("addresses", table)
    plain: pa.Table = connection.sql(PLAIN_SQL).to_arrow_table()
    connection.unregister("addresses")
    rows = plain["number"].to_numpy()
    is_other = np.asarray(pc.is_valid(urls)).copy()
    is_other[rows] = False
    others = np.flatnonzero(is_other)
    texts = urls.take(pa.array(others)).to_pylist()
    digests = pa.array([url_digest(url) for url in texts], pa.string())
    hosts = pa.array([_host(url) for url in texts], pa.string())
    return (
        np.concatenate([rows, others]),
        pa.chunked_array([*plain["digest"].chunks, digests], pa.string()),
        pa.chunked_array([*plain["host"].chunks, hosts], pa.string()),
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url.strip()).hostname or ""
    except ValueError:
        return ""
