"""Columns and selections without the samples that were taken down.

Reads   ROOT/columns/<signal>/, ROOT/selections/
Writes  those of their files that hold any such sample, and all of their records, staged

Scores are not computed anew: a sample's own stay what they were. What was counted over the whole
corpus (ranks among neighbours, copies of a placeholder) was counted while the rest was there.
"""

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage
from infra.config import digest_of
from infra.errors import DamagedError
from infra.records import read_mapping, read_record
from infra.stamp import Stamp
from pipeline.corpus import list_signals, selection_url
from pipeline.scored import digest_and_nulls
from pipeline.select import ROWS_A_BATCH
from pipeline.selecting.policy import KEPT
from pipeline.takedown.takedown import Followed, Takedown, replaced

DUPLICATES = "duplicates"
"""The signal in which samples name each other."""


def follow_columns(takedown: Takedown, digests: dict[str, str]) -> Followed:
    """`digests`: what other records name and has changed, such as the embeddings' digest."""
    followed = Followed()
    # Those that others stand on come first: `duplicates` names the digests of `clip` and `hashes`.
    for signal in sorted(list_signals(takedown.root), key=lambda name: (name == DUPLICATES, name)):
        _follow_signal(takedown, signal, digests | followed.digests, followed)
    return followed


def follow_selections(takedown: Takedown, digests: dict[str, str]) -> Followed:
    followed = Followed()
    names = storage.list_names(takedown.url("selections"))
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if suffix == "toml":
            _follow_selection(takedown, stem, digests, followed)
        elif suffix == "parquet" and f"{stem}.toml" not in names:
            followed.removed.append(f"selections/{name}")  # not whole, and nobody's to use
    return followed


def _follow_signal(
    takedown: Takedown, signal: str, digests: dict[str, str], followed: Followed
) -> None:
    folder = f"columns/{signal}"
    names = storage.list_names(takedown.url(folder))
    has_manifest = "manifest.json" in names
    record = read_mapping(takedown.url(f"{folder}/manifest.json")) if has_manifest else {}
    files: dict[str, str] = record.get("files", {})
    heirs = _heirs(takedown, folder, names) if signal == DUPLICATES else {}
    shards = {shard.name for shard in takedown.before.shards}
    for name in names:
        stem, _, suffix = name.rpartition(".")
        # A file that isn't a shard's may hold anybody; and copies of a picture are anywhere.
        if suffix != "parquet" or (stem in shards - takedown.changed and not heirs):
            continue
        path = f"{folder}/{name}"
        if _stage_without(takedown, path, files.get(name), heirs) and has_manifest:
            files[name], nulls = digest_and_nulls(takedown.staged_url(path))
            if "nulls" in record:
                record["nulls"] |= {name: nulls}
                record["nulls"] = {one: num for one, num in record["nulls"].items() if num}
    exchanged = {takedown.before.digest: takedown.after.digest, **digests}
    if "stamp.json" in names:
        _stage_stamp(takedown, signal, exchanged)
    if has_manifest:
        _stage_manifest(takedown, signal, record, exchanged, followed)


def _stage_stamp(takedown: Takedown, signal: str, exchanged: dict[str, str]) -> None:
    path = f"columns/{signal}/stamp.json"
    stamp = read_record(takedown.url(path), Stamp)
    config = replaced(stamp.config, exchanged)
    changed = {
        "input_digest": replaced(stamp.input_digest, exchanged),
        "config": config,
        "config_digest": _config_digest(signal, stamp.config_digest, stamp.config, config),
    }
    takedown.stage(path, stamp.model_copy(update=changed).model_dump_json(indent=2) + "\n")


def _stage_manifest(
    takedown: Takedown,
    signal: str,
    record: dict[str, Any],
    exchanged: dict[str, str],
    followed: Followed,
) -> None:
    old, identity = record["config_digest"], replaced(record["identity"], exchanged)
    digest = _config_digest(signal, old, record["identity"], identity)
    if digest != old:
        followed.digests[old] = digest
    record |= {
        "identity": identity,
        "config_digest": digest,
        "corpus_digest": replaced(record["corpus_digest"], exchanged),
    }
    # The order of the keys is that of who wrote it.
    takedown.stage(f"columns/{signal}/manifest.json", json.dumps(record, indent=2) + "\n")


def _heirs(takedown: Takedown, folder: str, names: list[str]) -> dict[str, list[str]]:
    """By the uid of a picture that stood for its copies and goes, the copies that remain; the first
    of them will stand for the others."""
    heirs: dict[str, list[str]] = {}
    for name in names:
        if name.endswith(".parquet"):
            table = storage.read_table(takedown.url(f"{folder}/{name}"), ["uid", "duplicate_of"])
            stands_for = _is_forgotten(takedown, table["duplicate_of"])
            remains = pc.invert(_is_forgotten(takedown, table["uid"]))
            for row in table.filter(pc.and_(stands_for, remains)).to_pylist():
                heirs.setdefault(row["duplicate_of"], []).append(row["uid"])
    return heirs


def _inherited(table: pa.Table, heirs: dict[str, list[str]]) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        first, *others = heirs.get(row["duplicate_group"], [None])
        if first == row["uid"]:
            group = first if others else None
            row |= {"duplicate_group": group, "duplicate_of": None, "duplicate_evidence": None}
        elif first is not None:
            row |= {"duplicate_group": first, "duplicate_of": first}
    return pa.Table.from_pylist(rows, table.schema)


def _config_digest(
    signal: str, digest: str, config: dict[str, Any], changed: dict[str, Any]
) -> str:
    """As `score` or another stage would give it for the changed configuration."""
    if changed == config:
        return digest
    if digest == digest_of([signal, config]):
        return digest_of([signal, changed])
    if digest == digest_of(config):
        return digest_of(changed)
    raise AssertionError(f"{signal}: a digest {digest} of unknown make")


def _follow_selection(
    takedown: Takedown, name: str, digests: dict[str, str], followed: Followed
) -> None:
    import tomli_w

    record = read_mapping(selection_url(takedown.root, name, ".toml"))
    path = f"selections/{name}.parquet"
    _check_intact(takedown.url(path), record["sha256"])
    table = storage.read_table(takedown.url(path))
    forgotten = _is_forgotten(takedown, table["uid"])
    kept = table.filter(pc.invert(forgotten))
    for row in table.filter(pc.and_(forgotten, table["keep"])).to_pylist():
        followed.kept_by.setdefault(row["uid"], []).append(name)
        followed.weights.setdefault(row["uid"], []).append(row["weight"])
    exchanged = {takedown.before.digest: takedown.after.digest, **digests}
    changed = {
        key: replaced(value, exchanged) if key in {"corpus_digest", "signals"} else value
        for key, value in record.items()
    }
    if kept.num_rows < table.num_rows:
        with (
            storage.publish(takedown.staged_url(path)) as file,
            pq.ParquetWriter(file, kept.schema, compression="zstd") as writer,
        ):
            # As `select` writes it, so that the same rows are the same bytes.
            for batch in kept.combine_chunks().to_batches(ROWS_A_BATCH):
                writer.write_batch(batch)
        counts = Counter(reason or KEPT for reason in kept["reason"].to_pylist())
        changed |= {"sha256": storage.sha256(takedown.staged_url(path)), "counts": dict(counts)}
    takedown.stage(f"selections/{name}.toml", tomli_w.dumps(changed))


def _check_intact(url: str, sha256: str | None) -> None:
    if sha256 is not None and storage.sha256(url) != sha256:
        raise DamagedError(
            f"{url}: other bytes than its manifest says; restore it from a copy, or remove it and "
            "run the command that made it again"
        )


def _is_forgotten(takedown: Takedown, uids: pa.ChunkedArray) -> pa.ChunkedArray:
    forgotten = pa.array(sorted(takedown.forgotten), pa.string())
    return pc.is_in(uids, value_set=forgotten)


def _stage_without(
    takedown: Takedown, path: str, sha256: str | None, heirs: dict[str, list[str]]
) -> bool:
    """Stage a table of samples without those that are forgotten, if it holds any."""
    url = takedown.url(path)
    _check_intact(url, sha256)
    table = storage.read_table(url)
    if "uid" not in table.column_names:
        return False
    kept = table.filter(pc.invert(_is_forgotten(takedown, table["uid"])))
    kept = _inherited(kept, heirs) if heirs else kept
    if kept.equals(table):
        return False
    storage.publish_table(takedown.staged_url(path), kept)
    return True
