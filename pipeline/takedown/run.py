"""One takedown in one corpus, from its plan to its receipt.

Reads   ROOT, whole
Writes  ROOT/forget/ and, when all is there, what it holds in the places of the old files
"""

import importlib
from collections import Counter
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.cluster import Workers
from infra.records import read_record
from pipeline.corpus import Manifest, manifest_url, read_manifest
from pipeline.pages.page import PAGES
from pipeline.takedown.following import follow_columns, follow_selections
from pipeline.takedown.inventory import inventory
from pipeline.takedown.journal import Journal
from pipeline.takedown.plan import Plan
from pipeline.takedown.receipts import (
    NOT_REACHED,
    Change,
    Receipt,
    changes,
    receipt_url,
    rows_table,
    unchanged_digest,
    write_files_table,
)
from pipeline.takedown.search import find_by_content, on_all, places
from pipeline.takedown.shard_forget import Found, ShardForgetter, Swept
from pipeline.takedown.takedown import Followed, Takedown
from pipeline.takedown.tombstones import (
    TAKEN_DOWN,
    Tombstone,
    Tombstones,
    add_tombstones,
    read_tombstones,
    tombstones_url,
    write_tombstones,
)

RETRIEVAL = "retrieval.forgetting"
"""Follows where there are embeddings; named, not imported: curation needs no model library."""


class Commit(BaseModel):
    """A plan's outcome, all of it staged."""

    model_config = ConfigDict(frozen=True)

    plan: Plan
    tombstones_digest: str
    inventory: dict[str, str]
    """sha256 of every file before."""
    before: Manifest
    after: Manifest
    found: dict[str, int]
    files: list[str]
    removed: list[str]
    rebuilds: list[dict[str, Any]]


def take_down(root: str, plan: Plan, workers: Workers) -> Receipt:
    journal = Journal(root)
    if journal.is_committed:
        done = _finish(journal)
        if all(one in done.asked for one in plan.asked):
            return done
    manifest = read_manifest(root)
    plan = _look_into(workers, journal, manifest, plan)
    swept = _sweep(workers, journal, manifest)
    _commit(journal, manifest, plan, swept)
    return _finish(journal)


def _look_into(workers: Workers, journal: Journal, manifest: Manifest, plan: Plan) -> Plan:
    """Find what can only be found by looking at pictures; its uids become tombstones, too."""
    tombstones = read_tombstones(journal.root)
    if (plan.corpus_digest, plan.tombstones_digest) == (manifest.digest, tombstones.digest):
        return plan
    storage.remove(journal.staged)
    storage.remove(journal.url("swept"))
    blocklists = tuple(dict.fromkeys(name for one in plan.asked for name in one.blocklists))
    found = find_by_content(workers, journal.root, manifest, tombstones, blocklists)
    stones = [Tombstone("uid", uid, None, plan.time, plan.receipt) for uid in found]
    changed = {
        "corpus_digest": manifest.digest,
        "tombstones_digest": add_tombstones(journal.root, stones).digest,
        "found_by": found,
    }
    plan = plan.model_copy(update=changed)
    storage.publish_text(journal.url("plan.json"), plan.model_dump_json(indent=2))
    return plan


def _sweep(workers: Workers, journal: Journal, manifest: Manifest) -> dict[str, Swept]:
    """New shards, by path within ROOT, of those that hold what falls under the tombstones."""
    tombstones = read_tombstones(journal.root)
    swept: dict[str, Swept] = {}
    for root, shards in places(journal.root, manifest).items():
        place = root[len(journal.root) :].strip("/")
        records = journal.url("swept", place or "corpus")
        done = {
            name.removesuffix(".json"): read_record(storage.join(records, name), Swept)
            for name in storage.list_names(records)
        }
        staged = storage.join(journal.staged, place)
        make = partial(ShardForgetter, root, staged, records, tombstones)
        left = [shard for shard in shards if shard.name not in done]
        new = on_all(workers, root, make, left, "forget: rewrite")
        done |= {name: one for name, one in new.items() if one is not None}
        swept |= {storage.join(place, name).lstrip("/"): one for name, one in done.items()}
    return swept


def _commit(journal: Journal, before: Manifest, plan: Plan, swept: dict[str, Swept]) -> None:
    """Stage all that changes beside the shards, then say that all is there."""
    root = journal.root
    found = {name: swept[name].found for name in sorted(swept)}
    after = _manifest(before, swept)
    followed, tombstones = Followed(), read_tombstones(root)
    if found:
        uids = {row.uid for rows in found.values() for row in rows if row.uid is not None}
        stones = [Tombstone("uid", uid, None, plan.time, plan.receipt) for uid in uids]
        tombstones = Tombstones([*tombstones.stones, *stones])
        write_tombstones(tombstones_url(journal.staged), tombstones)
        takedown = Takedown(root, journal.staged, before, after, tombstones.values("uid"))
        followed = _follow(takedown, {plan.tombstones_before: tombstones.digest})
        rows = [
            {
                "shard": name,
                **row.model_dump(),
                "found_by": _found_by(plan, row),
                "kept_by": followed.kept_by.get(row.uid or "", []),
                "weights": followed.weights.get(row.uid or "", []),
            }
            for name, rows in found.items()
            for row in rows
        ]
        url = receipt_url(journal.staged, plan.receipt, ".rows.parquet")
        storage.publish_table(url, rows_table(rows))
        text = after.model_dump_json(indent=2) + "\n"
        storage.publish_text(manifest_url(journal.staged), text)
    if storage.exists(storage.join(root, "download", "plan.json")):
        # A retry that was killed has shards of its own, from before; it begins again.
        followed.removed.append("download")
    storage.sweep(journal.folder)
    commit = Commit(
        plan=plan,
        tombstones_digest=tombstones.digest,
        inventory=inventory(root, before),
        before=before,
        after=after,
        found=Counter(_found_by(plan, row) for rows in found.values() for row in rows),
        files=sorted(storage.list_files(journal.staged)),
        removed=followed.removed,
        rebuilds=followed.rebuilds,
    )
    storage.publish_text(journal.url("commit.json"), commit.model_dump_json())


def _found_by(plan: Plan, row: Found) -> str:
    return plan.found_by.get(row.uid or "", row.found_by)


def _follow(takedown: Takedown, digests: dict[str, str]) -> Followed:
    followed = Followed(digests=digests)
    if any(storage.list_names(takedown.url(name)) for name in ("embeddings", "index")):
        followed.add(importlib.import_module(RETRIEVAL).follow(takedown))
    followed.add(follow_columns(takedown, followed.digests))
    followed.add(follow_selections(takedown, followed.digests))
    followed.removed += [page for page in PAGES if storage.exists(takedown.url(page))]
    return followed


def _manifest(before: Manifest, swept: dict[str, Swept]) -> Manifest:
    counts = Counter(before.counts)
    names = [shard.name for shard in before.shards if shard.name in swept]
    for row in (row for name in names for row in swept[name].found):
        reason = row.error_message or row.status
        counts[reason if reason in counts else row.status] -= 1
        counts[TAKEN_DOWN] += 1
    shards = [swept[s.name].shard if s.name in swept else s for s in before.shards]
    # Not a copy: that would bring the old digest along, once it has been asked for.
    changed = {"shards": shards, "counts": dict((+counts).most_common())}
    return Manifest(**(dict(before) | changed))


def _finish(journal: Journal) -> Receipt:
    """Put in place what a commit says, build indices anew, leave the receipt."""
    root = journal.root
    commit = read_record(journal.url("commit.json"), Commit)
    journal.apply(commit.files, commit.removed, last="manifest.json")
    not_rebuilt: dict[str, str] = {}
    for settings in commit.rebuilds:
        if reason := importlib.import_module(RETRIEVAL).rebuild(root, **settings):
            not_rebuilt[settings["encoder"]] = reason
    receipt = _receipt(root, commit, not_rebuilt)
    if commit.found or _is_new(root, commit.plan):
        name = commit.plan.receipt
        write_files_table(root, name, changes(commit.inventory, inventory(root, commit.after)))
        storage.publish_text(receipt_url(root, name), receipt.model_dump_json(indent=2) + "\n")
    storage.sweep(root, "tombstones.parquet")
    journal.clear()
    return receipt


def _is_new(root: str, plan: Plan) -> bool:
    """Whether anything was asked that had not been asked before."""
    stones = read_tombstones(root).stones
    return any(one.blocklists for one in plan.asked) or any(
        stone.receipt == plan.receipt for stone in stones
    )


def _receipt(root: str, commit: Commit, not_rebuilt: dict[str, str]) -> Receipt:
    plan, before, after = commit.plan, commit.before, commit.after
    all_changes = changes(commit.inventory, inventory(root, after))
    num_unchanged, unchanged = unchanged_digest(all_changes)
    pairs = zip(before.shards, after.shards, strict=True)
    return Receipt(
        name=plan.receipt,
        time=plan.time,
        asked=plan.asked,
        tombstones_digest=commit.tombstones_digest,
        found=commit.found,
        corpus_digest=Change(before=before.digest, after=after.digest),
        num_samples_before=before.num_samples,
        num_samples_after=after.num_samples,
        shards=[new.name for old, new in pairs if old != new],
        files={path: one for path, one in all_changes.items() if one.before != one.after},
        num_unchanged=num_unchanged,
        unchanged_digest=unchanged,
        removed=commit.removed,
        rebuilt=[
            f"index of {encoder}"
            for encoder in (settings["encoder"] for settings in commit.rebuilds)
            if encoder not in not_rebuilt
        ],
        not_rebuilt={f"index of {encoder}": reason for encoder, reason in not_rebuilt.items()},
        not_reached=NOT_REACHED,
    )
