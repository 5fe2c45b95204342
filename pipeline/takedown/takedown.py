"""A takedown under way, as those see it who make what was computed from the corpus follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra import storage
from pipeline.corpus import Manifest


@dataclass(frozen=True)
class Takedown:
    """What changes in the corpus at `root`; new files wait at `staged` under the same paths."""

    root: str
    staged: str
    before: Manifest
    after: Manifest
    forgotten: frozenset[str]
    """uids of all that was ever taken down here."""

    @property
    def changed(self) -> set[str]:
        """Names of the shards that held any of it."""
        pairs = zip(self.before.shards, self.after.shards, strict=True)
        return {new.name for old, new in pairs if old != new}

    def url(self, path: str) -> str:
        return storage.join(self.root, path)

    def staged_url(self, path: str) -> str:
        return storage.join(self.staged, path)

    def stage(self, path: str, text: str) -> None:
        storage.publish_text(self.staged_url(path), text)


@dataclass
class Followed:
    """What, beside the staged files, makes derived ones fit the corpus as it will be."""

    removed: list[str] = field(default_factory=list)
    """Paths within ROOT."""
    digests: dict[str, str] = field(default_factory=dict)
    """Old digests that other records name, with what is in their place now."""
    rebuilds: list[dict[str, Any]] = field(default_factory=list)
    """Indices that are made anew once all else is in place."""
    kept_by: dict[str, list[str]] = field(default_factory=dict)
    """By uid of what is forgotten, the selections that kept it."""
    weights: dict[str, list[float]] = field(default_factory=dict)
    """By uid, with which weight each of them did."""

    def add(self, other: "Followed") -> None:
        self.removed += other.removed
        self.digests |= other.digests
        self.rebuilds += other.rebuilds
        self.kept_by |= other.kept_by
        self.weights |= other.weights


def replaced(value: Any, digests: Mapping[str, str]) -> Any:
    """A JSON-able value with every old digest in it exchanged."""
    if isinstance(value, dict):
        return {name: replaced(one, digests) for name, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, digests) for one in value]
    return digests.get(value, value) if isinstance(value, str) else value
