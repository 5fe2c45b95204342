"""All that a corpus knows of one row, gathered from what its commands left on disk.

Reads   the row's shard's parquet and _stats.json, its line in every signal's columns, in every
        selection, in the embeddings' metadata, in ROOT/quarantine, ROOT/tombstones.parquet and
        ROOT/receipts; of corpora packed from it and runs trained on them what concerns the row
"""

import datetime
import importlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage
from infra.errors import CarraraError
from infra.records import read_mapping
from pipeline.corpus import (
    PLACE_SCHEMA,
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    Shard,
    list_signals,
    read_manifest,
    shard_url,
)
from pipeline.takedown.receipts import read_receipts, receipt_url
from pipeline.takedown.shard_forget import quarantine_folders
from pipeline.takedown.tombstones import read_tombstones, url_digest

_DOWNLOAD = "-download."
NUM_THREADS = 8
"""Shards that are looked into at once."""
LEDGER = "training.ledger"
"""Named, not imported: curation needs no model library."""


@dataclass(frozen=True)
class Line:
    """One thing known: `value` for programs, `text` for people."""

    chapter: str
    name: str
    value: Any
    text: str


def line(chapter: str, name: str, value: Any, text: str | None = None) -> Line:
    return Line(chapter, name, value, _text(value) if text is None else text)


def tell(root: str, manifest: Manifest, shard: Shard, row: dict[str, Any]) -> Iterator[Line]:
    """What ROOT knows of a row of its own."""
    yield from _origin(manifest, row)
    yield from _fetched(root, shard, row)
    if row["status"] == SUCCESS:
        yield from _stored(shard, row)
        yield from _embedded(root, shard, row["uid"])
        yield from _scored(root, shard, row["uid"])
        yield from _selected(root, row["uid"])
    yield from _quarantined(root, shard, row["key"])
    yield from tell_taken_down(root, row["uid"], row["url"])


def tell_taken_down(root: str, uid: str | None, url: str | None) -> Iterator[Line]:
    wanted = {("uid", uid)} | ({("url", url_digest(url))} if url else set())
    for stone in read_tombstones(root).stones:
        if (stone.kind, stone.value) in wanted:
            text = f"on {_when(stone.time)}, receipt {stone.receipt}"
            value = {"time": stone.time, "receipt": stone.receipt}
            yield line("taken down", f"by {stone.kind}", value, text)
    for receipt in read_receipts(root):
        place = receipt_url(root, receipt.name, ".rows.parquet")
        if uid is not None and storage.exists(place):
            for row in _lines_of(storage.read_table(place), uid):
                text = f"{row['status']} in shard {row['shard']}, found by {row['found_by']}"
                kept = ", ".join(row["kept_by"])
                text += f", kept by {kept}" if kept else ""
                yield line("taken down", "it was", row, text)


def tell_packed(place: str, uid: str) -> Iterator[Line]:
    """Where a corpus that was packed from ROOT has it."""
    found = False
    for shard, row in find_rows(place, read_manifest(place), "uid", uid):
        found = True
        value = {name: row[name] for name in ("key", *PLACE_SCHEMA.names)} | {"shard": shard.name}
        yield line("packed", place, value, _place(shard, row))
    if not found:
        yield line("packed", place, None, "not in it")


def tell_trained(run: str, uid: str) -> Line:
    """How often a run's training met it, up to its newest checkpoint."""
    try:
        found = importlib.import_module(LEDGER).appearances(run, uid)
    except CarraraError as error:
        return line("trained", run, {"error": str(error)}, str(error))
    so_far = f"up to the checkpoint of step {found.num_steps:,} ({found.num_epochs:.2f} epochs)"
    if found.left_out_from is not None:
        so_far += f", left out from step {found.left_out_from:,} on"
    if not found.num_times:
        return line("trained", run, vars(found), f"never {so_far}")
    times = "once" if found.num_times == 1 else f"{found.num_times:,} times"
    text = f"{times} {so_far}: first in step {found.first_step:,}, last in {found.last_step:,}"
    return line("trained", run, vars(found), text)


def find_rows(
    root: str, manifest: Manifest, column: str, value: str
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """The rows that have this value, failures too; only the column is read of other shards."""
    shards = [shard for shard in manifest.shards if column != "key" or value.startswith(shard.name)]
    urls = [shard_url(root, shard.name, ".parquet") for shard in shards]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        has_it = pool.map(lambda url: _has(url, column, value), urls)
        for shard, url, is_there in zip(shards, urls, has_it, strict=True):
            if is_there:
                table = storage.read_table(url)
                for row in table.filter(pc.equal(table[column], value)).to_pylist():
                    yield shard, row


def _has(url: str, column: str, value: str) -> bool:
    # Not by storage.read_table: what it sets up takes longer than reading one column.
    with storage.open_read(url) as file:
        values = pq.ParquetFile(file).read([column])[column]
    return bool(pc.any(pc.equal(values, value)).as_py())


def _origin(manifest: Manifest, row: dict[str, Any]) -> Iterator[Line]:
    for name in ("uid", "key", "caption", "url"):
        yield line("sample", name, row[name])
    yield line("from the list", "digest", manifest.input_digest)
    told = {*ROW_SCHEMA.names, *PLACE_SCHEMA.names}
    for name, value in row.items():
        if name not in told and value is not None:
            yield line("from the list", name, value)


def _fetched(root: str, shard: Shard, row: dict[str, Any]) -> Iterator[Line]:
    status, reason = row["status"], row["error_message"]
    yield line("fetched", "status", status, f"{status}: {reason}" if reason else status)
    stats_url = shard_url(root, shard.name, "_stats.json")
    stats = read_mapping(stats_url) if storage.exists(stats_url) else {}
    if "start_time" in stats:
        times = [_of_epoch(stats[name]) for name in ("start_time", "end_time")]
        text = f"between {_when(times[0])} and {_when(times[1])}, with its shard"
        yield line("fetched", "when", times, text)
    runs = [name for name in storage.list_names(storage.join(root, "runs")) if _DOWNLOAD in name]
    if runs:
        yield line("fetched", "by", runs, ", ".join(f"runs/{name}" for name in runs))
    if row["sha256"] is not None:
        yield line("fetched", "sha256", row["sha256"])
    if row["original_width"] is not None:
        size = [row["original_width"], row["original_height"]]
        yield line("fetched", "size", size, f"{size[0]} x {size[1]}")


def _stored(shard: Shard, row: dict[str, Any]) -> Iterator[Line]:
    yield line("stored", "place", {"shard": shard.name, "key": row["key"]}, _place(shard, row))
    size = [row["width"], row["height"]]
    yield line("stored", "size", size, f"{size[0]} x {size[1]}")


def _place(shard: Shard, row: dict[str, Any]) -> str:
    if row["status"] != SUCCESS:
        return f"{row['key']}, {row['status']}: {row['error_message']}"
    text = f"{row['key']} in shards/{shard.name}.tar"
    if row.get("image_offset") is not None:
        text += f", {row['image_size']:,} bytes from {row['image_offset']:,} on"
    return text


def _embedded(root: str, shard: Shard, uid: str) -> Iterator[Line]:
    for slug in storage.list_names(storage.join(root, "embeddings")):
        folder = storage.join(root, "embeddings", slug)
        url = storage.join(folder, "manifest.json")
        if not storage.exists(url):
            continue
        record = read_mapping(url)
        for part in (part for part in record["parts"] if part["shard"] == shard.name):
            name = next(name for name in part["files"] if name.startswith("metadata/"))
            uids = storage.read_table(storage.join(folder, name), ["uid"])["uid"]
            row = pc.index(uids, uid).as_py()
            number = part["file_number"]
            text = f"row {row} of img_emb_{number}.npy and text_emb_{number}.npy"
            yield line(
                "embedded",
                record["encoder"],
                {"part": number, "row": row if row >= 0 else None},
                text if row >= 0 else "not: its picture can't be decoded",
            )


def _scored(root: str, shard: Shard, uid: str) -> Iterator[Line]:
    for signal in list_signals(root):
        url = storage.join(root, "columns", signal, f"{shard.name}.parquet")
        if not storage.exists(url):
            continue
        table = storage.read_table(url)
        if "uid" not in table.column_names:
            continue
        for row in _lines_of(table, uid):
            for field in list(table.schema)[1:]:
                value, models = row[field.name], _models(field)
                names = f"  ({_short(models)})" if models else ""
                told = {"value": value, "models": models}
                yield line(f"scored: {signal}", field.name, told, _text(value) + names)


def _models(field: pa.Field) -> dict[str, Any]:
    """What the column's metadata says of the models that it was computed by."""
    models: dict[str, Any] = json.loads((field.metadata or {}).get(b"carrara.models", b"{}"))
    return models


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_short(one)}" for name, one in value.items())
    text = str(value)
    is_digest = len(text) in {40, 64} and not set(text) - set("0123456789abcdef")
    return text[:12] if is_digest else text


def _selected(root: str, uid: str) -> Iterator[Line]:
    folder = storage.join(root, "selections")
    for name in storage.list_names(folder):
        stem, _, suffix = name.rpartition(".")
        if suffix != "toml":
            continue
        record = read_mapping(storage.join(folder, name))
        row = _selection_row(storage.join(folder, f"{stem}.parquet"), uid)
        if row is not None:
            yield line("selections", stem, row, _judgement(row, record.get("policy", {})))


def _selection_row(url: str, uid: str) -> dict[str, Any] | None:
    """One file has the whole corpus: of all its rows only the uids are read."""
    with storage.open_read(url) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            place = pc.index(parquet.read_row_group(group, ["uid"])["uid"], uid).as_py()
            if place >= 0:
                row: dict[str, Any] = parquet.read_row_group(group).slice(place, 1).to_pylist()[0]
                return row
    return None


def _judgement(row: dict[str, Any], policy: dict[str, Any]) -> str:
    if row["keep"]:
        return f"kept, weight {row['weight']:g}"
    rules = {rule["name"]: rule for rule in policy.get("rules", [])}
    rule = rules.get(row["reason"], {})
    source = f" ({rule['source']})" if rule.get("source") else ""
    asked = f": {' '.join(rule['keep'].split())}" if "keep" in rule else ""
    return f"dropped, {row['reason']}{asked}{source}"


def _quarantined(root: str, shard: Shard, key: str) -> Iterator[Line]:
    for folder in quarantine_folders(root):
        url = shard_url(storage.join(root, folder), shard.name, ".parquet")
        if not storage.exists(url):
            continue
        table = storage.read_table(url)
        for row in table.filter(pc.equal(table["key"], key)).to_pylist():
            distance = row.get("picture_distance")
            looks = "" if distance is None else f", {distance} of 256 bits from what was expected"
            value = {"error_message": row["error_message"], "picture_distance": distance}
            yield line("quarantine", folder, value, f"{row['error_message']}{looks}")


def _lines_of(table: pa.Table, uid: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.filter(pc.equal(table["uid"], uid)).to_pylist()
    return rows


def _of_epoch(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _when(time: str) -> str:
    return time[:19].replace("T", " ") + " UTC"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
