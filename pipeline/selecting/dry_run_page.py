"""The dry run as an offline page: keep rate, overlap of the rules, pictures at every threshold.

Reads   ROOT/shards/: of the pictures shown their bytes alone
Writes  one HTML file, with no script and no request
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.corpus import PLACE_SCHEMA, SUCCESS, Manifest, shard_url
from pipeline.pages import charts, gallery
from pipeline.pages.gallery import Picture
from pipeline.pages.page import render
from pipeline.selecting.dry_run import Boundary, DryRun, Near
from pipeline.selecting.samples_sql import read_parquet

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True)
class Shown:
    """A boundary with its pictures."""

    title: str
    sql: str
    limit: str
    """As a number, where it is the same for all."""
    num_dropped: int
    """By this rule and no other."""
    kept: list[Picture]
    dropped_label: str
    dropped: list[Picture]


def draw_page(
    connection: "DuckDBPyConnection", root: str, manifest: Manifest, found: DryRun, name: str
) -> str:
    """HTML."""
    rows = _rows(connection, root, manifest, found)
    thumbnails = gallery.thumbnails(root, manifest, [rows])
    by_uid = {row["uid"]: row for row in rows.to_pylist() if row["key"] in thumbnails}

    def pictures(near: list[Near]) -> Iterator[Picture]:
        for one in near:
            if row := by_uid.get(one.uid):
                note = "" if one.score is None else charts.number(one.score)
                yield Picture(row["caption"] or "", thumbnails[row["key"]], note)

    shown = [
        Shown(
            title=boundary.rule.name,
            sql=_sql_of(boundary),
            limit=_limit_of(boundary),
            num_dropped=found.num_only(found.policy.rules.index(boundary.rule)),
            kept=list(pictures(boundary.kept)),
            dropped_label=_label(boundary),
            dropped=list(pictures(boundary.dropped)),
        )
        for boundary in found.boundaries
    ]
    digests = [("corpus", manifest.digest), ("policy", found.policy.digest)]
    facts = {"name": name, "policy": found.policy, "digests": digests, "boundaries": shown}
    return render("dry_run.html", facts | numbers(found))


def numbers(found: DryRun) -> dict[str, Any]:
    """What the page's tables say; shares are of all samples, in percent."""
    places = range(len(found.policy.rules))
    total = max(found.num_samples, 1)
    return {
        "num_samples": found.num_samples,
        "num_kept": found.num_kept,
        "kept_share": 100 * found.num_kept / total,
        "rules": [
            {
                "name": found.policy.rules[i].name,
                "source": found.policy.rules[i].source,
                "first": found.num_first(i),
                "alone": found.num_alone(i),
                "only": found.num_only(i),
                "first_share": 100 * found.num_first(i) / total,
                "alone_share": 100 * found.num_alone(i) / total,
                "both_shares": [100 * found.num_both(i, j) / total for j in places],
            }
            for i in places
        ],
    }


def _rows(
    connection: "DuckDBPyConnection", root: str, manifest: Manifest, found: DryRun
) -> pa.Table:
    """uid, key, caption, shard and place of all that is to be shown.

    A list may name one pair twice: the row that failed has the uid of the one that has a picture.
    """
    near = [one for boundary in found.boundaries for one in (*boundary.kept, *boundary.dropped)]
    files = read_parquet(
        [shard_url(root, shard.name, ".parquet") for shard in manifest.shards], "filename = true"
    )
    return connection.sql(
        f"""SELECT uid, key, caption, parse_filename(filename, true) AS shard,
            {", ".join(PLACE_SCHEMA.names)} FROM {files}
            WHERE status = ? AND list_contains(?, uid)""",
        params=[SUCCESS, sorted({one.uid for one in near})],
    ).to_arrow_table()


def _label(boundary: Boundary) -> str:
    how = "Dropped, drawn by chance" if boundary.threshold is None else "Just dropped"
    return how if boundary.is_decisive else f"{how}; by other rules too"


def _sql_of(boundary: Boundary) -> str:
    if boundary.threshold is None:
        return boundary.rule.keep
    return f"{boundary.threshold.score} {boundary.threshold.operator} {boundary.threshold.limit}"


def _limit_of(boundary: Boundary) -> str:
    limits = {one.limit for one in (*boundary.kept, *boundary.dropped) if one.limit is not None}
    return charts.number(limits.pop()) if len(limits) == 1 else ""
