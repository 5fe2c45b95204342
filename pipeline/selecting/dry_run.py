"""What a policy would do to a corpus, before it does: `select --dry-run`.

One pass over the columns judges every sample by every rule, not only up to the first that fails.
The set of rules that drop a sample is a number (bit i: rule i), and how many samples have which
number tells the rest: what a rule drops alone, what only it drops, what two rules both drop. Next
to each threshold a few samples are kept in mind: those whose fate it alone decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.errors import DamagedError
from pipeline.selecting.policy import Policy, Rule
from pipeline.selecting.samples_sql import failure
from pipeline.selecting.thresholds import Threshold, find_thresholds

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NUM_NEAR = 12
"""Samples shown on either side of a threshold."""


@dataclass(frozen=True)
class Near:
    """A sample next to a threshold."""

    uid: str
    score: float | None
    limit: float | None


@dataclass(frozen=True)
class Boundary:
    """Samples that a rule just keeps or drops, where it can be the one that decides on them."""

    rule: Rule
    threshold: Threshold | None
    """None: the rule compares no numbers, and what only it drops is drawn by chance."""
    kept: list[Near]
    """Kept by all rules; the nearest to the threshold come first."""
    dropped: list[Near]
    is_decisive: bool
    """What is dropped is dropped by this rule alone; where there is nothing such, by others too."""


@dataclass(frozen=True)
class DryRun:
    policy: Policy
    counts: dict[int, int]
    """Samples by the rules that drop them, as bits."""
    boundaries: list[Boundary]

    @property
    def num_samples(self) -> int:
        return sum(self.counts.values())

    @property
    def num_kept(self) -> int:
        return self.counts.get(0, 0)

    def num_first(self, rule: int) -> int:
        """Dropped with this rule as the reason: the first that fails."""
        return self._count(failed for failed in self.counts if failed & -failed == 1 << rule)

    def num_alone(self, rule: int) -> int:
        """What the rule would drop were there no other."""
        return self.num_both(rule, rule)

    def num_only(self, rule: int) -> int:
        """What would be kept were this rule not there."""
        return self.counts.get(1 << rule, 0)

    def num_both(self, one: int, other: int) -> int:
        bits = 1 << one | 1 << other
        return self._count(failed for failed in self.counts if failed & bits == bits)

    def _count(self, masks: Iterator[int]) -> int:
        return sum(self.counts[failed] for failed in masks)


@dataclass(frozen=True)
class _Side:
    """Where to look for samples of a boundary."""

    rule: int
    threshold: Threshold | None


def dry_run(connection: "DuckDBPyConnection", policy: Policy, num_samples: int) -> DryRun:
    """Raises ConfigError for a rule that fails on the columns' values."""
    import duckdb

    sides = list(_sides(connection, policy))
    try:
        rows = connection.execute(_query(policy, sides)).fetchall()
    except duckdb.Error as error:
        raise failure(error) from None
    counts = {failed: num for failed, num, *_ in rows}
    if sum(counts.values()) != num_samples:
        raise DamagedError(
            f"the shards' parquets and columns join to {sum(counts.values())} rows, the manifest "
            f"counts {num_samples} samples; `carrara verify` tells which file is damaged"
        )
    near = {failed: found for failed, _, *found in rows}
    return DryRun(policy, counts, list(_boundaries(policy, sides, near)))


def _sides(connection: "DuckDBPyConnection", policy: Policy) -> Iterator[_Side]:
    for number, rule in enumerate(policy.rules):
        thresholds = find_thresholds(connection, rule.keep)
        yield from (_Side(number, one) for one in thresholds)
        if not thresholds:
            yield _Side(number, None)


def _query(policy: Policy, sides: Sequence[_Side]) -> str:
    bits = " | ".join(
        f"CASE WHEN ({rule.keep}\n) THEN 0 ELSE {1 << i} END" for i, rule in enumerate(policy.rules)
    )
    columns, nearest = [], []
    for number, side in enumerate(sides):
        one, bit = f"near_{number}", 1 << side.rule
        if side.threshold is None:
            # By uid, which is a hash: a fair draw.
            columns.append(f"{{'d': 0.0, 'uid': uid, 's': NULL, 'l': NULL}} AS {one}")
            where = f"failed & {bit} <> 0"
        else:
            score, limit = f"({side.threshold.score})", f"({side.threshold.limit})"
            columns.append(
                f"{{'d': abs({score} - {limit})::DOUBLE, 'uid': uid, 's': {score}::DOUBLE, "
                f"'l': {limit}::DOUBLE}} AS {one}, "
                f"{score} {side.threshold.operator} {limit} AS passes_{number}"
            )
            where = f"CASE failed & {bit} WHEN 0 THEN passes_{number} ELSE NOT passes_{number} END"
        nearest.append(f"min({one}, {NUM_NEAR}) FILTER ({where})")
    return f"""
        WITH judged AS (SELECT {bits} AS failed, {", ".join(columns)} FROM samples)
        SELECT failed::BIGINT, count(*), {", ".join(nearest)} FROM judged GROUP BY failed
    """


def _boundaries(
    policy: Policy, sides: Sequence[_Side], near: dict[int, list[Any]]
) -> Iterator[Boundary]:
    for number, side in enumerate(sides):
        bit = 1 << side.rule
        found = {failed: of_sides[number] or [] for failed, of_sides in near.items()}
        is_decisive = bool(found.get(bit))
        others = [one for failed, some in found.items() if failed & bit for one in some]
        yield Boundary(
            rule=policy.rules[side.rule],
            threshold=side.threshold,
            kept=_nearest(found.get(0, []) if side.threshold else []),
            dropped=_nearest(found[bit] if is_decisive else others),
            is_decisive=is_decisive,
        )


def _nearest(found: list[dict[str, Any]]) -> list[Near]:
    ordered = sorted(found, key=lambda one: (one["d"], one["uid"]))
    return [Near(one["uid"], one["s"], one["l"]) for one in ordered[:NUM_NEAR]]
