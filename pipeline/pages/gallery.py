"""A look at a corpus that costs the same at any size: rows of a few even shards, some pictures.

Reads   ROOT/shards/, ROOT/columns/, ROOT/selections/<name>.parquet
"""

import base64
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import DamagedError, InputError
from pipeline.corpus import PLACE_SCHEMA, SUCCESS, Manifest, Shard, read_image, read_rows
from pipeline.pages import charts
from pipeline.pixels.picture_header import DECODER_ERRORS
from pipeline.pixels.stored_picture import open_picture
from pipeline.selecting.policy import Policy, Rule

MAX_ROWS = 1_000_000
"""Rows that histograms are drawn from."""
NUM_THREADS = 8
"""Pictures read at once: on an object store each is a request of its own."""
THUMBNAIL_SIZE = 128
"""Pixels of the longer side, for screens that show it at 96."""


NUM_KEPT = 54
"""Pictures shown of what was kept."""
NUM_DROPPED = 18
"""Pictures shown for each reason."""


@dataclass(frozen=True)
class Picture:
    caption: str
    source: str
    """A data: URL."""
    note: str = ""


@dataclass(frozen=True)
class Dropped:
    reason: str
    num_shown: int
    pictures: list[Picture]


def sample_rows(
    root: str, manifest: Manifest, signals: Sequence[str], selection: pa.Table | None
) -> pa.Table:
    """Samples with the values of all signals and, given a selection, `keep` and `reason`."""
    step = max(1, -(-manifest.num_samples // MAX_ROWS))
    shards = manifest.shards[::step]
    table = pa.concat_tables([_shard_rows(root, shard, signals) for shard in shards])
    return _with_verdicts(table, selection).sort_by("key")


def examples(
    root: str, manifest: Manifest, rows: pa.Table, policy: Policy | None
) -> tuple[list[Picture], list[Dropped]]:
    """Some of what is kept, and for each rule the clearest of what it drops."""
    kept = rows if policy is None else rows.filter(pc.is_null(rows["reason"]))
    chosen = kept.sort_by("uid").slice(0, NUM_KEPT)  # uids are hashes: a fair draw
    rules = list(policy.rules) if policy else []
    worst = [_clearest(rows, policy, i) for i in range(len(rules))] if policy else []
    sources = thumbnails(root, manifest, [chosen, *worst])
    dropped = [
        Dropped(rule.name, table.num_rows, _pictures(table, sources, columns_of(rule, rows)))
        for rule, table in zip(rules, worst, strict=True)
        if table.num_rows
    ]
    return _pictures(chosen, sources, []), dropped


def look_up(
    root: str,
    manifest: Manifest,
    signals: Sequence[str],
    selection: pa.Table | None,
    uids: Sequence[str],
) -> list[Picture]:
    """These samples, in the order asked for, and what became of each."""
    wanted = pa.array(uids, pa.string())
    tables = []
    for shard in manifest.shards:
        if pc.any(pc.is_in(read_rows(root, shard, ["uid"])["uid"], wanted)).as_py():
            found = _shard_rows(root, shard, signals)
            found = found.filter(pc.is_in(found["uid"], wanted))
            tables.append(_with_verdicts(found, selection))
    rows = {row["uid"]: row for table in tables for row in table.to_pylist()}
    if missing := [uid for uid in uids if uid not in rows]:
        raise InputError(f"{root}: no sample has the uid {missing[0]}; `show` takes samples' uids")
    chosen = [rows[uid] for uid in uids]
    sources = thumbnails(root, manifest, tables)
    return [
        Picture(row["caption"], sources[row["key"]], row.get("reason") or "kept")
        for row in chosen
        if row["key"] in sources
    ]


def pictures_of(root: str, manifest: Manifest, uids: Sequence[str]) -> dict[str, Picture]:
    """Pictures by uid, of these samples."""
    wanted, tables = pa.array(uids, pa.string()), []
    for shard in manifest.shards if uids else []:
        rows = _shard_rows(root, shard, [])
        tables.append(rows.filter(pc.is_in(rows["uid"], wanted)))
    sources = thumbnails(root, manifest, tables)
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        row["uid"]: Picture(row["caption"], sources[row["key"]])
        for row in rows
        if row["key"] in sources
    }


def score_columns(rows: pa.Table) -> list[str]:
    """The columns that have numbers in them."""
    return [
        field.name
        for field in rows.schema
        if (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
        and field.name not in PLACE_SCHEMA.names
    ]


def columns_of(rule: Rule, rows: pa.Table) -> list[str]:
    """The scores that a rule speaks of."""
    words = set(re.findall(r"\w+", rule.keep))
    return [name for name in score_columns(rows) if name in words]


def values(rows: pa.Table, column: str) -> charts.Values:
    """A column without what could not be computed."""
    numbers = np.asarray(rows[column].cast(pa.float64()).drop_null(), np.float64)
    return numbers[np.isfinite(numbers)]


def split(rows: pa.Table, policy: Policy, index: int) -> tuple[pa.Table, pa.Table]:
    """What came as far as a rule: those that passed it, and those that it dropped."""
    later = pa.array([rule.name for rule in policy.rules[index + 1 :]], pa.string())
    passed = pc.or_(pc.is_null(rows["reason"]), pc.is_in(rows["reason"], later))
    return rows.filter(passed), _dropped_by(rows, policy.rules[index])


def _dropped_by(rows: pa.Table, rule: Rule) -> pa.Table:
    return rows.filter(pc.fill_null(pc.equal(rows["reason"], rule.name), False))


def _clearest(rows: pa.Table, policy: Policy, index: int) -> pa.Table:
    """What a rule dropped, farthest from its threshold first where it has one."""
    passed, failed = split(rows, policy, index)
    columns = columns_of(policy.rules[index], rows)
    order = [("uid", "ascending")]
    if columns and charts.threshold(values(passed, columns[0]), values(failed, columns[0])):
        is_floor = values(failed, columns[0]).max() < values(passed, columns[0]).min()
        order = [(columns[0], "ascending" if is_floor else "descending"), *order]
    return failed.sort_by(order).slice(0, NUM_DROPPED)


def _pictures(rows: pa.Table, sources: dict[str, str], columns: Sequence[str]) -> list[Picture]:
    pictures = []
    for row in rows.select(["key", "caption", *columns]).to_pylist():
        if row["key"] in sources:
            known = [name for name in columns if row[name] is not None]
            note = ", ".join(
                f"{name.replace('_', ' ')} {charts.number(row[name])}" for name in known
            )
            pictures.append(Picture(row["caption"], sources[row["key"]], note))
    return pictures


def thumbnails(root: str, manifest: Manifest, tables: Sequence[pa.Table]) -> dict[str, str]:
    """data: URLs by key of the pictures in these rows, those that can be decoded."""
    columns = ["key", "shard", *PLACE_SCHEMA.names]
    wanted = {row["key"]: row for table in tables for row in table.select(columns).to_pylist()}
    shards = {shard.name: shard for shard in manifest.shards}

    def look_at(row: dict[str, Any]) -> str | None:
        place = (row[name] for name in PLACE_SCHEMA.names)
        return _thumbnail(read_image(root, shards[row["shard"]], *place))

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        thumbnails = threads.map(look_at, wanted.values())
        return {key: url for key, url in zip(wanted, thumbnails, strict=True) if url}


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _shard_rows(root: str, shard: Shard, signals: Sequence[str]) -> pa.Table:
    rows = read_rows(root, shard, ["key", "uid", "caption", "status", *PLACE_SCHEMA.names])
    rows = rows.filter(pc.equal(rows["status"], SUCCESS)).drop_columns(["status"])
    rows = rows.append_column("shard", pa.repeat(pa.scalar(shard.name), rows.num_rows))
    for signal in signals:
        url = storage.join(root, "columns", signal, f"{shard.name}.parquet")
        if not storage.exists(url):
            raise DamagedError(f"{url}: missing; `carrara score` makes it again")
        columns = storage.read_table(url).replace_schema_metadata(None)
        new = [name for name in columns.column_names if name not in rows.column_names]
        rows = rows.join(columns.select(["uid", *new]), "uid", join_type="left outer")
    return rows


def _with_verdicts(rows: pa.Table, selection: pa.Table | None) -> pa.Table:
    return rows if selection is None else rows.join(selection, "uid", join_type="left outer")


def _thumbnail(image: bytes) -> str | None:
    try:
        with open_picture(image) as opened:
            picture = opened.convert("RGB")
    except DECODER_ERRORS:
        return None
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return data_url(out.getvalue(), "jpeg")
