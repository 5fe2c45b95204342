"""A corpus's rows and columns as tables of a DuckDB connection, for `select`'s rules.

    shards       the shards' own columns, of what became a sample
    <signal>     uid and the columns of a signal
    samples      all of them, joined by uid

Reads   ROOT/shards/*.parquet, ROOT/columns/<signal>/*.parquet

`score` writes a signal's values in the order of the shard's samples. Where that is so of every
row, which is checked uid by uid, the join is a zip: it holds nothing in memory and takes a quarter
of the time. Where it is not, tables are joined by hash.

Where a list brought a column of a signal's name, `samples` has the signal's.
"""

import errno
import os
import tempfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from infra import storage
from infra.errors import CarraraError, ConfigError, DamagedError, StorageError
from infra.progress import track
from pipeline.corpus import PLACE_SCHEMA, ROW_SCHEMA, ColumnsManifest, Manifest, shard_url

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NUM_THREADS = 8
"""Files whose digests are computed at once."""


def check_digests(root: str, manifest: Manifest, signals: Mapping[str, ColumnsManifest]) -> None:
    """Raises DamagedError naming the first file that is not what its manifest says."""
    files = {
        shard_url(root, shard.name, ".parquet"): shard.rows_sha256 for shard in manifest.shards
    }
    for name, columns in signals.items():
        for shard in manifest.shards:
            file = f"{shard.name}.parquet"
            files[storage.join(root, "columns", name, file)] = columns.files.get(file, "missing")

    def check(url: str) -> None:
        try:
            is_intact = storage.sha256(url) == files[url]
        except FileNotFoundError:
            is_intact = False
        if not is_intact:
            raise DamagedError(
                f"{url}: missing, or not what its manifest says; `carrara verify` tells "
                "which files are damaged"
            )

    with (
        track("select: check", len(files), "files") as bar,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        for _ in pool.map(check, files):
            bar.advance(1)


def connect(root: str, memory_limit: str, spool: str) -> "DuckDBPyConnection":
    """A connection that reads the files of ROOT; beyond its memory it spills into `spool`."""
    import duckdb
    import fsspec

    settings: dict[str, Any] = {"memory_limit": memory_limit, "temp_directory": spool}
    try:
        connection = duckdb.connect(config=settings)
    except duckdb.Error as error:
        raise ConfigError(f"memory_limit {memory_limit!r}: {first_line(error)}") from None
    # Nothing is fetched from the network behind the user's back, nor a second bar drawn on stdout.
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET enable_progress_bar = false")
    if "://" in root:
        filesystem, _ = fsspec.url_to_fs(root, use_listings_cache=False)
        connection.register_filesystem(filesystem)
    return connection


def open_samples(
    root: str, manifest: Manifest, signals: list[str], memory_limit: str, spool: str
) -> "DuckDBPyConnection":
    """Raises DamagedError for a parquet that can't be read."""
    import duckdb

    connection = connect(root, memory_limit, spool)
    names = [shard.name for shard in manifest.shards]
    rows = read_parquet([shard_url(root, name, ".parquet") for name in names])
    try:
        connection.execute(f"CREATE VIEW shards AS SELECT * FROM {rows} WHERE status = 'success'")
        for signal in signals:
            folder = storage.join(root, "columns", signal)
            files = read_parquet([storage.join(folder, f"{name}.parquet") for name in names])
            connection.execute(f'CREATE VIEW "{signal}" AS SELECT * FROM {files}')
        _join(connection, signals)
    except duckdb.Error as error:
        raise unreadable(error) from None
    return connection


def _join(connection: "DuckDBPyConnection", signals: list[str]) -> None:
    if _is_in_order(connection, signals):
        joins = "".join(
            f' POSITIONAL JOIN (SELECT * EXCLUDE (uid) FROM "{signal}") AS "{signal}"'
            for signal in signals
        )
    else:
        joins = "".join(f' LEFT JOIN "{signal}" USING (uid)' for signal in signals)
    taken = {name for signal in signals for name in connection.table(f'"{signal}"').columns}
    fixed = {*ROW_SCHEMA.names, *PLACE_SCHEMA.names}
    own = all_but(connection, "shards", taken - fixed)
    connection.execute(f"CREATE VIEW samples AS SELECT * FROM (SELECT {own} FROM shards){joins}")


def all_but(connection: "DuckDBPyConnection", source: str, taken: Collection[str]) -> str:
    """SQL for a source's columns without those whose names, in whatever case, others take: of two
    of one name DuckDB would answer with the first."""
    lower = {name.lower() for name in taken}
    columns = connection.sql(f"SELECT * FROM {source} LIMIT 0").columns
    left_out = ['"' + name.replace('"', '""') + '"' for name in columns if name.lower() in lower]
    return f"* EXCLUDE ({', '.join(left_out)})" if left_out else "*"


def _is_in_order(connection: "DuckDBPyConnection", signals: list[str]) -> bool:
    """Whether row by row the signals have the shards' uids."""
    if not signals:
        return True
    joins = "".join(
        f' POSITIONAL JOIN (SELECT uid AS u{i} FROM "{signal}")' for i, signal in enumerate(signals)
    )
    same = " AND ".join(f"uid IS NOT DISTINCT FROM u{i}" for i in range(len(signals)))
    query = f"SELECT count(*) FILTER (NOT ({same})) FROM (SELECT uid FROM shards){joins}"
    ((num_apart,),) = connection.execute(query).fetchall()
    return bool(num_apart == 0)


def read_parquet(urls: list[str], *options: str) -> str:
    """SQL for the rows of these files, one after the other."""
    quoted = ", ".join("'" + url.replace("'", "''") + "'" for url in urls)
    return f"read_parquet({', '.join([f'[{quoted}]', *options])})"


def failure(error: Exception) -> CarraraError:
    """What it means that a query over `samples` failed whose parts are known to be valid."""
    if ".parquet" in str(error) or _is_out_of_room(error):  # the first names what it can't read
        return unreadable(error)
    return ConfigError(
        f"policy: {first_line(error)}; an expression that fits its columns' types fails on their "
        "values"
    )


def unreadable(error: Exception) -> CarraraError:
    """What it means that files of a corpus could not be gone through."""
    if _is_out_of_room(error):
        return StorageError(
            f"{tempfile.gettempdir()}: no room for DuckDB's temporary files ({first_line(error)}); "
            "make room there, set TMPDIR to a place that has it, or raise the memory limit"
        )
    return DamagedError(
        f"a parquet of the shards or of the columns can't be read ({first_line(error)}); "
        "`carrara verify` tells which files are damaged"
    )


def _is_out_of_room(error: Exception) -> bool:
    """On the disk that it spills to, or in memory since that disk takes no more."""
    import duckdb

    no_room = os.strerror(errno.ENOSPC)
    return isinstance(error, duckdb.OutOfMemoryException) or no_room in str(error)


def first_line(error: Exception) -> str:
    """What DuckDB says, without its kind of error."""
    return str(error).partition("\n")[0].partition(": ")[2] or str(error)
