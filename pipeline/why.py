"""The whole story of one row: why is this picture here, or why not?

    carrara why ROOT 3375c7f4293180672e5ea3611b7319bc --packed PACKED --run RUN
    carrara why ROOT 000020010                             # by its key
    carrara why ROOT https://example.org/picture.jpg       # by its address

Reads   ROOT, and of packed corpora and training runs what concerns the row
Writes  nothing
"""

import re
from collections.abc import Iterator
from typing import Annotated

from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import InputError
from infra.summary import Stopwatch, Summary
from pipeline.corpus import Manifest, read_manifest
from pipeline.story import Line, find_rows, tell, tell_packed, tell_taken_down, tell_trained
from pipeline.takedown.asked import MANY

MAX_ROWS = 10
"""Told of one address, which may have many captions."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    sample: Annotated[str, POSITIONAL]
    """A row by its uid, its key or its URL."""
    packed: Annotated[tuple[Place, ...], MANY, EXECUTION_ONLY] = ()
    """Corpora that were packed from it."""
    run: Annotated[tuple[Place, ...], MANY, EXECUTION_ONLY] = ()
    """Training runs, on it or on these."""


def run(config: Config) -> Summary:
    """Raises InputError for a row that neither is nor was there."""
    with Stopwatch() as watch:
        manifest = read_manifest(config.root)
        stories = [list(story) for story in _stories(config, manifest)]
    if not stories:
        raise InputError(
            f"{config.root}: no row {config.sample!r}; expected the uid (32 hex digits), key or "
            "URL of one that was in the list"
        )
    return Summary(
        stage="why",
        num_in=sum(manifest.counts.values()),
        num_out=len(stories),
        unit="rows",
        seconds=watch.seconds,
        details={"rows": [_nested(story) for story in stories]},
        table=[row for story in stories for row in _table(story)],
    )


def _stories(config: Config, manifest: Manifest) -> Iterator[Iterator[Line]]:
    kind = _kind_of(config.sample)
    found = find_rows(config.root, manifest, kind, config.sample)
    is_there = False
    for (shard, row), _ in zip(found, range(MAX_ROWS), strict=False):
        is_there = True
        yield _story(config, tell(config.root, manifest, shard, row), row["uid"])
    if not is_there and kind != "key":
        # An address that was taken down is in no row any more.
        known = {"uid": None, "url": None} | {kind: config.sample}
        gone = list(tell_taken_down(config.root, **known))
        if gone:
            yield _story(config, iter(gone), known["uid"])


def _story(config: Config, lines: Iterator[Line], uid: str | None) -> Iterator[Line]:
    yield from lines
    if uid is not None:
        for place in config.packed:
            yield from tell_packed(place, uid)
        for place in config.run:
            yield tell_trained(place, uid)


def _kind_of(sample: str) -> str:
    if "://" in sample:
        return "url"
    return "uid" if re.fullmatch(r"[0-9a-f]{32}", sample) else "key"


def _nested(story: list[Line]) -> dict[str, dict[str, object]]:
    chapters: dict[str, dict[str, object]] = {}
    for line in story:
        chapters.setdefault(line.chapter, {})[line.name] = line.value
    return chapters


def _table(story: list[Line]) -> Iterator[dict[str, object]]:
    last = ""
    for line in story:
        chapter = line.chapter if line.chapter != last else ""
        yield {"": chapter, "what": line.name, "is": line.text}
        last = line.chapter
