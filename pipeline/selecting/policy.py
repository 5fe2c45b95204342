"""What to keep, as SQL: a policy is a TOML file of rules in order, each with its source.

    title = "..."
    signals = ["caption", "clip"]            # the columns that the rules stand on
    optional_signals = ["duplicates"]        # used where they are there
    weight = "1.0"                           # optional: how often a kept sample counts

    [[rules]]
    name = "caption too short"               # the reason that is given for what it drops
    keep = "num_characters >= 5"             # true: keep; false or NULL: drop
    source = "LAION-5B, section 3"           # where the threshold comes from

    [[rules]]
    name = "copy of another"
    keep = "duplicate_of IS NULL"
    needs = "duplicates"                     # an optional signal: without it the rule is left out
    source = "..."

Reads   policies/<name>.toml (the shipped ones) or any fsspec URL
"""

from collections.abc import Collection
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from infra.config import Settings, digest_of, read_toml
from infra.errors import ConfigError, InputError

KEPT = "kept"
"""What is counted beside the rules' names."""

SHIPPED = Path(__file__).parent / "policies"


class Rule(Settings):
    name: str = Field(min_length=1)
    keep: str = Field(min_length=1)
    source: str = ""
    needs: str | None = None
    """One of the optional signals; where it is not there, the rule is left out."""


class Policy(Settings):
    title: str = ""
    signals: tuple[str, ...] | None = None
    """None: whatever has been scored."""
    optional_signals: tuple[str, ...] = ()
    """Used where they have been scored, and no mistake where not."""
    weight: str = "1.0"
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len({*names, KEPT}) <= len(names):
            raise ValueError(f"rules need names of their own, and none is called {KEPT!r}")
        return self

    @model_validator(mode="after")
    def _check_needs(self) -> Self:
        for rule in self.rules:
            if rule.needs is not None and rule.needs not in self.optional_signals:
                raise ValueError(f"rule {rule.name!r} needs {rule.needs!r}: no optional signal")
        return self

    def applied(self, signals: Collection[str]) -> Self:
        """The policy without the rules whose optional signals are not among these."""
        rules = tuple(rule for rule in self.rules if rule.needs is None or rule.needs in signals)
        if not rules:
            needed = ", ".join(self.optional_signals)
            raise InputError(
                f"policy: each of its rules needs a signal that is not there (any of {needed}); "
                "score one of these first"
            )
        return self.model_copy(update={"rules": rules})

    @property
    def digest(self) -> str:
        """16 hex digits over what decides the outcome: titles and sources may be reworded."""
        rules = [[rule.name, rule.keep, rule.needs] for rule in self.rules]
        return digest_of([rules, self.weight, self.signals, self.optional_signals])


def shipped_policies() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_policy(name_or_url: str) -> Policy:
    """Raises ConfigError where there is no such policy or it isn't one."""
    shipped = SHIPPED / f"{name_or_url}.toml"
    url = str(shipped) if shipped.is_file() else name_or_url
    try:
        return Policy.model_validate(read_toml(url, f"policy {url}"))
    except FileNotFoundError:
        raise ConfigError(
            f"policy {name_or_url!r}: no such file, nor a shipped policy (shipped: "
            f"{', '.join(shipped_policies())})"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"policy {url}: {place}: {first['msg']}") from None


def policy_of(where: str) -> Policy:
    """A policy of one rule; raises ConfigError for what is no text."""
    try:
        return Policy(rules=(Rule(name=f"not {where}", keep=where, source="--where"),))
    except ValidationError as error:
        raise ConfigError(f"--where {where!r}: {error.errors()[0]['msg']}") from None
