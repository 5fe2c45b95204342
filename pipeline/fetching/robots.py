"""What a site's robots.txt and tdmrep.json allow: RFC 9309, and the TDM Reservation Protocol.

Text in, verdicts on addresses out; matching is protego's. Also X-Robots-Tag and tdm-reservation
headers, which come with the picture itself. Reads and writes no files.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from protego import Protego

from pipeline.fetching.fetch_settings import Failure
from pipeline.fetching.web_address import WebAddress

RULE_PATHS = {"robots.txt": "/robots.txt", "tdmrep.json": "/.well-known/tdmrep.json"}
"""Where an origin's rules lie, by the opt-out's name."""

MAX_RULES_BYTES = 500 * 1024
"""RFC 9309, section 2.5: what a crawler must at least read; the rest is ignored."""

MAX_TDM_RULES = 1000

BY_ROBOTS = Failure("disallowed by robots.txt")
BY_ROBOTS_TAG = Failure("disallowed by X-Robots-Tag")
BY_TDM_HEADER = Failure("disallowed by tdm-reservation")
BY_TDMREP = Failure("disallowed by tdmrep.json")


TdmRules = tuple[tuple[Protego, bool], ...]
"""Patterns in their order, and whether they reserve."""


@dataclass(slots=True)
class Rules:
    """What one origin said."""

    robots: Protego | None = None
    tdm: TdmRules = ()
    num_bytes: int = 0

    def crawl_delay_s(self, user_agent_token: str) -> float:
        delay = self.robots.crawl_delay(user_agent_token) if self.robots else None
        return delay if delay and 0.0 < delay < math.inf else 0.0

    def refusal(self, address: WebAddress, user_agent_token: str) -> Failure | None:
        if self.robots and not self.robots.can_fetch(address.url, user_agent_token):
            return BY_ROBOTS
        # "The most specific match is the first in sequence" (TDMRep, section 6.1).
        for pattern, is_reserved in self.tdm:
            if not pattern.can_fetch(address.url, "*"):
                return BY_TDMREP if is_reserved else None
        return None


def parse_robots(data: bytes) -> Protego | None:
    text = data[:MAX_RULES_BYTES].decode("utf-8-sig", errors="replace")
    return Protego.parse(text) if text.strip() else None


def parse_tdmrep(data: bytes) -> TdmRules:
    """What is no array of rules says nothing: the server "does not implement this protocol"."""
    try:
        rules = json.loads(data)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(rules, list):
        return ()
    parsed = (_parse_tdm_rule(rule) for rule in rules[:MAX_TDM_RULES])
    return tuple(rule for rule in parsed if rule is not None)


def _parse_tdm_rule(rule: Any) -> tuple[Protego, bool] | None:
    if not isinstance(rule, dict) or not isinstance(location := rule.get("location"), str):
        return None
    location = location.strip()
    if not location.startswith(("/", "*")) or not location.isprintable() or "#" in location:
        return None
    pattern = Protego.parse(f"User-agent: *\nDisallow: {location}")
    return pattern, str(rule.get("tdm-reservation")) == "1"


def is_disallowed(values: list[str], user_agent_token: str, directives: Collection[str]) -> bool:
    """Whether X-Robots-Tag headers forbid the use: `directive, ...` or `agent: directive, ...`."""
    for value in values:
        agent = ""
        for part in value.lower().split(","):
            name, colon, rest = part.strip().partition(":")
            # `max-snippet: 5` is a directive with a value, not an agent's name.
            if colon and not name.startswith(("max-", "unavailable_after")):
                agent, name = name.strip(), rest.strip()
            names = {"noindex", "nofollow"} if name == "none" else {name}
            if agent in ("", user_agent_token.lower()) and not names.isdisjoint(directives):
                return True
    return False


def is_reserved(values: list[str]) -> bool:
    """Whether tdm-reservation headers reserve the rights of text and data mining."""
    return any(value.strip() == "1" for value in values)
