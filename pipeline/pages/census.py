"""What a corpus is made of, counted over every row: failures, hosts, languages, licences, copies.

Reads   ROOT/shards/*.parquet, ROOT/columns/{caption,duplicates}/, ROOT/selections/<name>.parquet

DuckDB counts, within MEMORY_LIMIT; what has not been scored or selected is left out.
"""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra import storage
from pipeline.corpus import SUCCESS, Manifest, selection_url, shard_url
from pipeline.selecting.samples_sql import all_but, connect, read_parquet, unreadable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "2GB"

NUM_REASONS, NUM_HOSTS_A_REASON = 12, 4
NUM_HOSTS, NUM_LANGUAGES, NUM_LICENCES = 15, 15, 10
NUM_GROUPS, NUM_SHOWN_OF_GROUP = 12, 8

LICENCE_COLUMNS = ("license", "licence", "license_url", "rights")
"""What lists call the column that tells a picture's licence."""

HOST = r"lower(regexp_extract(url, '^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#:]+)', 1))"


@dataclass(frozen=True)
class Count:
    """So many of something, and how many of these a selection keeps."""

    name: str
    num: int
    num_kept: int | None = None


@dataclass(frozen=True)
class Failure:
    """A class of failure, and where it happens most."""

    reason: str
    num: int
    hosts: list[Count]


@dataclass(frozen=True)
class Host:
    name: str
    num_rows: int
    num_samples: int
    num_kept: int | None


@dataclass(frozen=True)
class Group:
    """Copies of one picture."""

    uids: list[str]
    """The one that stays first; at most NUM_SHOWN_OF_GROUP."""
    num: int
    evidence: str


@dataclass(frozen=True)
class Census:
    failures: list[Failure] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    num_hosts: int = 0
    languages: list[Count] = field(default_factory=list)
    licences: list[Count] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    num_groups: int = 0
    num_copies: int = 0
    """Samples that are a copy of one that stays."""


def take_census(
    root: str, manifest: Manifest, signals: Collection[str], selection: str | None
) -> Census:
    """Raises DamagedError for a parquet that can't be read."""
    if not manifest.shards:
        return Census()
    with _open(root, manifest, signals, selection) as connection:
        num_hosts = connection.execute("SELECT count(DISTINCT host) FROM counted").fetchall()[0][0]
        columns = connection.table("counted").columns
        licence = next((name for name in LICENCE_COLUMNS if name in columns), None)
        has_copies = "duplicates" in signals
        num_groups, num_copies = _num_copies(connection) if has_copies else (0, 0)
        return Census(
            failures=list(_failures(connection)),
            hosts=_hosts(connection),
            num_hosts=num_hosts,
            languages=_counts(connection, "language", NUM_LANGUAGES)
            if "language" in columns
            else [],
            licences=_counts(connection, licence, NUM_LICENCES) if licence else [],
            groups=list(_groups(connection)) if num_groups else [],
            num_groups=num_groups,
            num_copies=num_copies,
        )


@contextmanager
def _open(
    root: str, manifest: Manifest, signals: Collection[str], selection: str | None
) -> Iterator["DuckDBPyConnection"]:
    """A connection with the view `counted`: every row of the list, its host and what is known."""
    import duckdb

    with (
        tempfile.TemporaryDirectory(prefix="carrara-") as spool,
        connect(root, MEMORY_LIMIT, spool) as connection,
    ):
        try:
            _count_in(
                connection, root, [shard.name for shard in manifest.shards], signals, selection
            )
            yield connection
        except duckdb.Error as error:
            raise unreadable(error) from None


def _count_in(
    connection: "DuckDBPyConnection",
    root: str,
    names: list[str],
    signals: Collection[str],
    selection: str | None,
) -> None:
    columns, joins, taken = f", {HOST} AS host", "", ["host", "keep"]
    if "caption" in signals:
        joins += f" LEFT JOIN (SELECT uid, language FROM {_scores(root, 'caption', names)})"
        joins += " USING (uid)"
        taken.append("language")
    if "duplicates" in signals:
        duplicates = _scores(root, "duplicates", names)
        connection.execute(f"CREATE VIEW duplicates AS SELECT * FROM {duplicates}")
    if selection is not None:
        kept = read_parquet([selection_url(root, selection)])
        joins += f" LEFT JOIN (SELECT uid, keep FROM {kept}) USING (uid)"
    else:
        columns += ", NULL::BOOLEAN AS keep"
    rows = read_parquet([shard_url(root, name, ".parquet") for name in names])
    own = f"(SELECT {all_but(connection, rows, taken)} FROM {rows})"
    connection.execute(f"CREATE VIEW counted AS SELECT *{columns} FROM {own}{joins}")


def _scores(root: str, signal: str, names: list[str]) -> str:
    folder = storage.join(root, "columns", signal)
    return read_parquet([storage.join(folder, f"{name}.parquet") for name in names])


def _failures(connection: "DuckDBPyConnection") -> Iterator[Failure]:
    reasons = connection.execute(
        "SELECT error_message, count(*) AS num FROM counted WHERE status <> ? "
        "GROUP BY ALL ORDER BY num DESC, error_message LIMIT ?",
        [SUCCESS, NUM_REASONS],
    ).fetchall()
    for reason, num in reasons:
        hosts = connection.execute(
            "SELECT host, count(*) AS num FROM counted WHERE error_message = ? AND host <> '' "
            "GROUP BY ALL ORDER BY num DESC, host LIMIT ?",
            [reason, NUM_HOSTS_A_REASON],
        ).fetchall()
        yield Failure(reason, num, [Count(host, of_host) for host, of_host in hosts])


def _hosts(connection: "DuckDBPyConnection") -> list[Host]:
    rows = connection.execute(
        # A duplicate row has the uid of the sample that it repeats, but is none itself.
        "SELECT host, count(*) AS num, count(*) FILTER (status = $1), "
        "count(*) FILTER (keep AND status = $1), count(keep) "
        "FROM counted WHERE host <> '' GROUP BY ALL ORDER BY num DESC, host LIMIT $2",
        [SUCCESS, NUM_HOSTS],
    ).fetchall()
    has_selection = any(num_judged for *_, num_judged in rows)
    return [
        Host(name, num, num_samples, num_kept if has_selection else None)
        for name, num, num_samples, num_kept, _ in rows
    ]


def _counts(connection: "DuckDBPyConnection", column: str, limit: int) -> list[Count]:
    """Samples by a column's value, the most frequent first."""
    rows = connection.execute(
        f"SELECT coalesce({column}::VARCHAR, 'unknown') AS name, count(*) AS num, "
        "count(*) FILTER (keep), count(keep) FROM counted WHERE status = ? "
        "GROUP BY name ORDER BY num DESC, name LIMIT ?",
        [SUCCESS, limit],
    ).fetchall()
    return [
        Count(name, num, num_kept if num_judged else None)
        for name, num, num_kept, num_judged in rows
    ]


def _num_copies(connection: "DuckDBPyConnection") -> tuple[int, int]:
    query = "SELECT count(DISTINCT duplicate_group), count(duplicate_of) FROM duplicates"
    num_groups, num_copies = connection.execute(query).fetchall()[0]
    return int(num_groups), int(num_copies)


def _groups(connection: "DuckDBPyConnection") -> Iterator[Group]:
    """The largest groups."""
    rows = connection.execute(
        "SELECT list(uid ORDER BY duplicate_of IS NOT NULL, uid), count(*) AS num, "
        "string_agg(DISTINCT duplicate_evidence, ', ' ORDER BY duplicate_evidence) "
        "FROM duplicates WHERE duplicate_group IS NOT NULL "
        "GROUP BY duplicate_group ORDER BY num DESC, duplicate_group LIMIT ?",
        [NUM_GROUPS],
    ).fetchall()
    for uids, num, evidence in rows:
        yield Group(uids[:NUM_SHOWN_OF_GROUP], num, evidence or "")
