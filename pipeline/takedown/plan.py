"""What a takedown is about, put up before anything else is done.

Writes  ROOT/tombstones.parquet     first: from then on none of it comes back
        ROOT/forget/plan.json       what was asked, and what it will be called
"""

import datetime

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.errors import ConfigError
from infra.records import read_record
from pipeline.takedown.journal import Journal
from pipeline.takedown.receipts import Asked, receipt_url
from pipeline.takedown.tombstones import Tombstone, Tombstones, add_tombstones, read_tombstones


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


def begin(root: str, asked: Asked) -> Plan:
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
