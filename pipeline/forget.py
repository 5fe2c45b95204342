"""Take samples down for good: out of the shards and out of all that was computed from them.

    carrara forget ROOT --url https://example.org/1.jpg --domain example.com --near face.jpg
    carrara forget ROOT --url-list urls.txt --also PACKED     # a corpus that was packed from ROOT
    carrara forget ROOT                                       # finish what was interrupted

Reads   ROOT, whole
Writes  ROOT/tombstones.parquet          at once: later downloads and packs refuse these rows
        ROOT/forget/                     the new files, until all of them are put in place
        ROOT/shards columns embeddings index selections manifest.json    those that held any of it
        ROOT/receipts/<time>.json        what was asked, found and changed, with digests

A forgotten row keeps its place and its uid in the parquet, and nothing else. Shards that hold none
of it keep their bytes. Safe to kill: the tombstones stand from the start, the corpus changes as
one, and the same command again ends in the same bytes.
"""

import datetime
import importlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ConfigError, ShortfallError
from infra.records import read_record
from infra.summary import Stopwatch, Summary
from pipeline.asked import MANY, Request, asked_for
from pipeline.blocklists import load_blocklist
from pipeline.corpus import Manifest, Shard, manifest_url, read_manifest
from pipeline.following import follow_columns, follow_selections
from pipeline.inventory import inventory
from pipeline.journal import Journal
from pipeline.receipts import (
    NOT_REACHED,
    Asked,
    Change,
    Receipt,
    changes,
    receipt_url,
    rows_table,
    unchanged_digest,
    write_files_table,
)
from pipeline.shard_forget import (
    ContentFinder,
    Found,
    ShardForgetter,
    Swept,
    has_hashes,
    quarantine_shards,
)
from pipeline.takedown import Followed, Takedown
from pipeline.tombstones import (
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
Answer = TypeVar("Answer")

PAGES = ("report.html", "dry-run.html")
"""Pages with pictures that are made again by a command."""


class Config(Request, StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    also: Annotated[tuple[Place, ...], MANY, EXECUTION_ONLY] = ()
    """Corpora that were packed from it, to be treated alike."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()


class Plan(BaseModel):
    """What is being done to one corpus."""

    model_config = ConfigDict(frozen=True)

    time: str
    receipt: str
    tombstones_before: str
    """Digest of those that there were."""
    asked: list[Asked] = []
    corpus_digest: str = ""
    tombstones_digest: str = ""
    """The two that the rest holds for."""
    found_by: dict[str, str] = {}
    """By uid, of what was found by its content."""


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


def run(config: Config) -> Summary:
    """Raises ShortfallError where a shard can't be read; the tombstones stand all the same."""
    with Stopwatch() as watch:
        asked = asked_for(config)
        for blocklist in config.blocklist:
            load_blocklist(blocklist)
        places = (config.root, *config.also)
        unfinished = [place for place in places if not _is_whole(place)]
        plans = [_begin(place, asked) for place in places]
        if unfinished:
            raise ShortfallError(
                f"{unfinished[0]}: its download has not come to its end; it refuses from now on "
                f"what was asked; let it finish, then run `carrara forget {unfinished[0]}`"
            )
        receipts = []
        for place, plan in zip(places, plans, strict=True):
            add_tombstones(place, read_tombstones(config.root).stones)
            receipts.append(_forget(config, place, plan))
    return _summary(config, receipts, watch)


def _summary(config: Config, receipts: list[Receipt], watch: Stopwatch) -> Summary:
    found = sum((Counter(one.found) for one in receipts), Counter[str]())
    written = {
        "receipt" if place == config.root else f"receipt of {place}": url
        for place, one in zip((config.root, *config.also), receipts, strict=True)
        if storage.exists(url := receipt_url(place, one.name))
    }
    return Summary(
        stage="forget",
        num_in=sum(one.num_samples_before for one in receipts),
        num_out=sum(one.num_samples_after for one in receipts),
        counts={"rows found": found.total()} | {f"by {kind}": num for kind, num in found.items()},
        seconds=watch.seconds,
        outputs=written,
        details={
            "tombstones": len(read_tombstones(config.root)),
            "shards rewritten": sum(len(one.shards) for one in receipts),
            "corpus digest": receipts[0].corpus_digest.after,
        },
    )


def _is_whole(root: str) -> bool:
    """Raises InputError where nothing is that could ever become a corpus."""
    if storage.exists(manifest_url(root)):
        return True
    if not storage.list_names(storage.join(root, "download")):
        read_manifest(root)
    return False


def _begin(root: str, asked: Asked) -> Plan:
    """Put up the tombstones: from here on none of it comes back, whatever happens."""
    journal, there = Journal(root), read_tombstones(root)
    url = journal.url("plan.json")
    pending = read_record(url, Plan) if storage.exists(url) else None
    is_asked = bool(asked.stones or asked.blocklists)
    if not (is_asked or there.stones or pending):
        raise ConfigError(
            f"forget {root}: nothing to forget; say what with --url, --domain, --uid, --sha256, "
            "--near or --blocklist"
        )
    # What is committed already takes up nothing new.
    plan = pending if pending and not journal.is_committed else _new_plan(root, asked, there)
    add_tombstones(root, (Tombstone(*one, plan.time, plan.receipt) for one in asked.stones))
    if is_asked and asked not in plan.asked:
        plan = plan.model_copy(update={"asked": [*plan.asked, asked], "corpus_digest": ""})
    if not journal.is_committed:
        storage.publish_text(url, plan.model_dump_json(indent=2))
    return plan


def _new_plan(root: str, asked: Asked, there: Tombstones) -> Plan:
    """Under the name that a run left in the tombstones which was killed right after, if any."""
    identities = {(kind, value) for kind, value, _ in asked.stones}
    begun = {
        (stone.time, stone.receipt)
        for stone in there.stones
        if (stone.kind, stone.value) in identities
        and not storage.exists(receipt_url(root, stone.receipt))
    }
    now = datetime.datetime.now(datetime.UTC)
    time, receipt = max(begun, default=(now.isoformat(), now.strftime("%Y%m%dT%H%M%S%fZ")))
    return Plan(time=time, receipt=receipt, tombstones_before=there.digest)


def _forget(config: Config, root: str, plan: Plan) -> Receipt:
    journal = Journal(root)
    if journal.is_committed:
        done = _finish(journal)
        if all(one in done.asked for one in plan.asked):
            return done
    manifest = read_manifest(root)
    plan = _look_into(config, journal, manifest, plan)
    swept = _sweep(config, journal, manifest)
    _commit(journal, manifest, plan, swept)
    return _finish(journal)


def _look_into(config: Config, journal: Journal, manifest: Manifest, plan: Plan) -> Plan:
    """Find what can only be found by looking at pictures; its uids become tombstones, too."""
    tombstones = read_tombstones(journal.root)
    if (plan.corpus_digest, plan.tombstones_digest) == (manifest.digest, tombstones.digest):
        return plan
    storage.remove(journal.staged)
    storage.remove(journal.url("swept"))
    blocklists = tuple(dict.fromkeys(name for one in plan.asked for name in one.blocklists))
    found: dict[str, str] = {}
    if blocklists or tombstones.has_pictures or tombstones.values("sha256"):
        for root, shards in _places(journal.root, manifest).items():
            hashed = root == journal.root and has_hashes(root, manifest)
            make = partial(ContentFinder, root, tombstones, blocklists, hashed)
            for by_uid in _on_all(config, root, make, shards, "forget: look").values():
                found |= by_uid
    stones = [Tombstone("uid", uid, None, plan.time, plan.receipt) for uid in found]
    changed = {
        "corpus_digest": manifest.digest,
        "tombstones_digest": add_tombstones(journal.root, stones).digest,
        "found_by": found,
    }
    plan = plan.model_copy(update=changed)
    storage.publish_text(journal.url("plan.json"), plan.model_dump_json(indent=2))
    return plan


def _places(root: str, manifest: Manifest) -> dict[str, list[Shard]]:
    """Where there are pictures, and in which shards."""
    apart = quarantine_shards(root)
    return {root: manifest.shards} | {
        storage.join(root, folder): shards for folder, shards in apart.items()
    }


def _sweep(config: Config, journal: Journal, manifest: Manifest) -> dict[str, Swept]:
    """New shards, by path within ROOT, of those that hold what falls under the tombstones."""
    tombstones = read_tombstones(journal.root)
    swept: dict[str, Swept] = {}
    for root, shards in _places(journal.root, manifest).items():
        place = root[len(journal.root) :].strip("/")
        records = journal.url("swept", place or "corpus")
        done = {
            name.removesuffix(".json"): read_record(storage.join(records, name), Swept)
            for name in storage.list_names(records)
        }
        staged = storage.join(journal.staged, place)
        make = partial(ShardForgetter, root, staged, records, tombstones)
        left = [shard for shard in shards if shard.name not in done]
        new = _on_all(config, root, make, left, "forget: rewrite")
        done |= {name: one for name, one in new.items() if one is not None}
        swept |= {storage.join(place, name).lstrip("/"): one for name, one in done.items()}
    return swept


def _on_all(
    config: Config,
    root: str,
    make: Callable[[], Callable[[Shard], Answer]],
    shards: list[Shard],
    description: str,
) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    failed: dict[str, str] = {}
    for outcome in map_on_workers(
        make,
        shards,
        workers=config.workers,
        description=description,
        unit="samples",
        size=lambda shard: shard.num_samples,
    ):
        if outcome.error is None:
            answers[outcome.item.name] = cast(Answer, outcome.result)
        else:
            failed[outcome.item.name] = outcome.error
    if failed:
        raise ShortfallError(
            f"forget {root}: {len(failed)} of {len(shards)} shards failed "
            f"({', '.join(sorted(failed))}; first error: {failed[min(failed)]}); what was asked "
            "for is refused from now on, but still there: run the command again"
        )
    return answers


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
            }
            for name, rows in found.items()
            for row in rows
        ]
        url = receipt_url(journal.staged, plan.receipt, ".rows.parquet")
        storage.publish_table(url, rows_table(rows))
        text = after.model_dump_json(indent=2) + "\n"
        storage.publish_text(manifest_url(journal.staged), text)
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
    for settings in commit.rebuilds:
        importlib.import_module(RETRIEVAL).rebuild(root, **settings)
    receipt = _receipt(root, commit)
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


def _receipt(root: str, commit: Commit) -> Receipt:
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
        rebuilt=[f"index of {settings['encoder']}" for settings in commit.rebuilds],
        not_reached=NOT_REACHED,
    )
