"""What a takedown is about, put up before anything else is done.

Writes  ROOT/tombstones.parquet     first: from then on none of it comes back
        ROOT/forget/plan.json       what was asked, and what it will be called
"""

import datetime
import re

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.errors import ConfigError
from infra.records import read_record
from pipeline.takedown.journal import Journal
from pipeline.takedown.receipts import Asked, receipt_names, receipt_url
from pipeline.takedown.tombstones import Tombstone, Tombstones, add_tombstones, read_tombstones

NAME, NAME_PATTERN = "%Y%m%dT%H%M%S%fZ", r"\d{8}T\d{12}Z"
"""Of a receipt: the moment of its takedown, UTC."""


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
    if pending and not journal.is_committed:
        plan = pending
    else:  # what is committed already takes up nothing new
        plan = _new_plan(root, asked, there, pending)
    add_tombstones(root, (Tombstone(*one, plan.time, plan.receipt) for one in asked.stones))
    if is_asked and asked not in plan.asked:
        plan = plan.model_copy(update={"asked": [*plan.asked, asked], "corpus_digest": ""})
    if not journal.is_committed:
        storage.publish_text(url, plan.model_dump_json(indent=2))
    return plan


def _new_plan(root: str, asked: Asked, there: Tombstones, pending: Plan | None) -> Plan:
    """Under the name that a run left in the tombstones which was killed right after, if any, and
    not under that of the one that is still to be put in place."""
    identities = set() if pending else {(kind, value) for kind, value, _ in asked.stones}
    begun = {
        (stone.time, stone.receipt)
        for stone in there.stones
        if (stone.kind, stone.value) in identities
        and not storage.exists(receipt_url(root, stone.receipt))
    }
    now = datetime.datetime.now(datetime.UTC)
    others = [*receipt_names(root), *([pending.receipt] if pending else [])]
    time, receipt = max(begun, default=(now.isoformat(), _receipt_name(now, others)))
    before = Tombstones(stone for stone in there.stones if stone.receipt != receipt)
    return Plan(time=time, receipt=receipt, tombstones_before=before.digest)


def _receipt_name(now: datetime.datetime, others: list[str]) -> str:
    """By the clock, but after the others: receipts are told by their names in the order of the
    takedowns, and a clock may have been set back."""
    newest = max((name for name in others if re.fullmatch(NAME_PATTERN, name)), default="")
    if newest < (name := now.strftime(NAME)):
        return name
    after = datetime.datetime.strptime(newest, NAME) + datetime.timedelta(microseconds=1)
    return after.strftime(NAME)
