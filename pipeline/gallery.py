"""A look at a corpus that costs the same at any size: rows and pictures of a few even shards.

Reads   ROOT/shards/, ROOT/columns/, ROOT/selections/<name>.parquet
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from infra import storage
from infra.errors import DamagedError, InputError
from pipeline import charts
from pipeline.corpus import SUCCESS, Manifest, Shard, iter_samples, read_rows
from pipeline.policy import Policy, Rule

MAX_ROWS = 1_000_000
"""Rows that histograms are drawn from."""
MAX_PICTURE_BYTES = 256 << 20
"""Of tars that example pictures are looked for in."""
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
    shards = _spread(manifest.shards, MAX_ROWS, lambda shard: shard.num_samples)
    table = pa.concat_tables([_shard_rows(root, shard, signals) for shard in shards])
    return _with_verdicts(table, selection).sort_by("key")


def examples(
    root: str, manifest: Manifest, rows: pa.Table, policy: Policy | None
) -> tuple[list[Picture], list[Dropped]]:
    """Some of what is kept, and for each rule the clearest of what it drops."""
    shards = _spread(manifest.shards, MAX_PICTURE_BYTES, lambda shard: shard.num_bytes)
    names = pa.array([shard.name for shard in shards])
    at_hand = pc.is_in(pc.utf8_slice_codeunits(rows["key"], 0, len(shards[0].name)), names)
    rows = rows.filter(at_hand) if shards else rows
    kept = rows if policy is None else rows.filter(pc.is_null(rows["reason"]))
    chosen = kept.sort_by("uid").slice(0, NUM_KEPT)  # uids are hashes: a fair draw
    rules = list(policy.rules) if policy else []
    worst = [_clearest(rows, policy, i) for i in range(len(rules))] if policy else []
    keys = {key for table in (chosen, *worst) for key in table["key"].to_pylist()}
    sources = _thumbnails(root, shards, keys)
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
    shards, tables = [], []
    for shard in manifest.shards:
        if pc.any(pc.is_in(read_rows(root, shard, ["uid"])["uid"], wanted)).as_py():
            shards.append(shard)
            tables.append(_with_verdicts(_shard_rows(root, shard, signals), selection))
    rows = {row["uid"]: row for table in tables for row in table.to_pylist()}
    if missing := [uid for uid in uids if uid not in rows]:
        raise InputError(f"{root}: no sample has the uid {missing[0]}; `show` takes samples' uids")
    chosen = [rows[uid] for uid in uids]
    sources = _thumbnails(root, shards, {row["key"] for row in chosen})
    return [
        Picture(row["caption"], sources[row["key"]], row.get("reason") or "kept")
        for row in chosen
        if row["key"] in sources
    ]


def score_columns(rows: pa.Table) -> list[str]:
    """The columns that have numbers in them."""
    return [
        field.name
        for field in rows.schema
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
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


def _thumbnails(root: str, shards: Sequence[Shard], keys: set[str]) -> dict[str, str]:
    """data: URLs of the pictures under these keys, those that can be decoded."""
    found = {}
    for shard in shards:
        if any(key.startswith(shard.name) for key in keys):
            for sample in iter_samples(root, shard):
                if sample.key in keys and (url := _thumbnail(sample.image)):
                    found[sample.key] = url
    return found


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _shard_rows(root: str, shard: Shard, signals: Sequence[str]) -> pa.Table:
    rows = read_rows(root, shard, ["key", "uid", "caption", "status"])
    rows = rows.filter(pc.equal(rows["status"], SUCCESS)).drop_columns(["status"])
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


def _spread(shards: Sequence[Shard], budget: int, size: Callable[[Shard], int]) -> list[Shard]:
    """Evenly spaced shards that fit the budget together; one at least."""
    total = sum(map(size, shards))
    step = max(1, -(-total // budget))
    return list(shards[::step])


def _thumbnail(image: bytes) -> str | None:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # all that Pillow raises on bytes it can't decode
        return None
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return data_url(out.getvalue(), "jpeg")
