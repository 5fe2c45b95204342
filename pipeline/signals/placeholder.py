"""Under how many different URLs of the corpus a picture's very bytes were fetched.

One picture under many URLs is mostly a placeholder: "image not available", a tracking pixel, a
logo. Captions differ, bytes do not.

Reads   the shards' parquets: all of them once, by DuckDB within `--options.memory-limit`, in the
        command's own process; after that a shard's own, and what was found for it
Writes  ROOT/columns/placeholder/.counts.partial while shards are scored: what was found more than
        once, in shards' order, so that a worker reads little of it
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import ConfigError, DamagedError
from pipeline.corpus import SUCCESS, Shard, read_manifest, read_rows, shard_url
from pipeline.databases import told_by_number
from pipeline.score import Options

MEMORY_LIMIT = "2GB"
"""Beyond it DuckDB goes on in temporary files."""

ROWS_A_GROUP = 1 << 16

QUERY = f"""
    COPY (
        WITH
            fetched AS (
                SELECT uid, url, sha256, parse_filename(filename, true) AS shard
                FROM read_parquet($files, filename = true)
                WHERE status = '{SUCCESS}' AND sha256 IS NOT NULL
            ),
            -- Of each URL its hash: one of the same sha256 is mistaken for another once in 2^64.
            pairs AS (SELECT DISTINCT sha256, hash(url) FROM fetched),
            repeated AS (
                SELECT sha256, count(*)::INTEGER AS num_urls
                FROM pairs GROUP BY sha256 HAVING count(*) > 1
            )
        SELECT shard, uid, num_urls FROM fetched JOIN repeated USING (sha256) ORDER BY shard, uid
    ) TO $target (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROWS_A_GROUP})
"""


class PlaceholderSignal:
    name = "placeholder"
    schema = pa.schema([("num_urls", pa.int32())])

    def __init__(self, root: str, options: Options) -> None:
        self._root = root
        self._memory_limit = options.get("memory_limit") or MEMORY_LIMIT
        # Hidden from every listing, and swept away where a killed command leaves it.
        self._counts = storage.join(root, "columns", self.name, ".counts.partial")

    def identity(self) -> dict[str, Any]:
        return {"version": 1}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Counts the whole corpus; raises ConfigError, DamagedError."""
        with storage.publish(self._counts) as target:
            count_urls(self._root, str(target), self._memory_limit)
        try:
            yield
        finally:
            storage.remove(self._counts)

    def __call__(self, shard: Shard) -> pa.Table:
        rows = read_rows(self._root, shard, ["uid", "sha256", "status"])
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        repeated = self._repeated(shard)
        places = pc.index_in(rows["uid"], value_set=repeated["uid"].combine_chunks())
        found = repeated["num_urls"].combine_chunks().take(places.combine_chunks())
        once = pc.if_else(pc.is_valid(rows["sha256"]), 1, None).combine_chunks()
        num_urls = pc.coalesce(found, once.cast(pa.int32()))
        return pa.table({"uid": rows["uid"], "num_urls": num_urls})

    def _repeated(self, shard: Shard) -> pa.Table:
        """uid and num_urls of the shard's pictures that have several URLs."""
        import pyarrow.parquet as pq

        with storage.open_read(self._counts) as file:
            # Row groups of other shards are skipped by their statistics.
            return pq.read_table(
                file,
                columns=["uid", "num_urls"],
                filters=[("shard", "==", shard.name)],
                pre_buffer=False,  # else threads of Arrow's hold the file's bytes: arrow_file
            )


def count_urls(root: str, target: str, memory_limit: str) -> None:
    """shard, uid, num_urls of every picture with more than one, as a local parquet file.

    Raises OSError where there is no room for it.
    """
    import duckdb
    import fsspec

    files = [shard_url(root, shard.name, ".parquet") for shard in read_manifest(root).shards]
    with tempfile.TemporaryDirectory(prefix="carrara-") as spool:
        settings: dict[str, Any] = {"memory_limit": memory_limit, "temp_directory": spool}
        try:
            connection = duckdb.connect(config=settings)
        except duckdb.Error as error:
            raise ConfigError(f"options.memory_limit {memory_limit!r}: {error}") from None
        with connection:
            connection.execute("SET autoinstall_known_extensions = false")
            if "://" in root:
                filesystem, _ = fsspec.url_to_fs(root, use_listings_cache=False)
                connection.register_filesystem(filesystem)
            try:
                with told_by_number(or_there=spool):
                    connection.execute(QUERY, {"files": files, "target": target})
            except duckdb.OutOfMemoryException:
                raise ConfigError(
                    f"options.memory_limit {memory_limit!r}: too little to count this corpus's "
                    "URLs; give it more"
                ) from None
            except duckdb.Error as error:
                raise DamagedError(
                    f"{root}: a shard's parquet can't be read ({str(error).splitlines()[0]}); "
                    f"`carrara verify {root}` tells which"
                ) from None
