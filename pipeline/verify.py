"""Reread a corpus and everything derived from it against the digests that were written with it.

    carrara verify ROOT

Reads   ROOT/manifest.json and every shard's tar and parquet; the files that the manifests under
        ROOT/columns, ROOT/embeddings and ROOT/index give a sha256 for; ROOT/selections
        where something was taken down, all of these once more, for any trace of it
Writes  nothing
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ShortfallError
from infra.progress import track
from infra.summary import Stopwatch, Summary
from pipeline.corpus import Manifest, read_manifest
from pipeline.takedown.inventory import inventory
from pipeline.takedown.journal import Journal
from pipeline.takedown.tombstones import read_tombstones

NUM_NAMED = 20
"""Files that a message spells out."""

State = Literal["intact", "damaged", "missing"]


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    num_threads: Annotated[int, EXECUTION_ONLY] = Field(default=8, ge=1)
    """Files that are read at once."""


@dataclass(frozen=True)
class Expected:
    """A file and what it must be."""

    name: str
    """Its path within ROOT."""
    sha256: str


def run(config: Config) -> Summary:
    """Raises ShortfallError naming every file that is damaged or missing, or that still holds
    something of what was taken down."""
    with Stopwatch() as watch:
        _check_no_takedown_is_open(config.root)
        manifest = read_manifest(config.root)
        files = [Expected(*file) for file in inventory(config.root, manifest).items()]
        states = dict(zip(files, _check_all(config, files), strict=True))
        bad = [f"{file.name} ({state})" for file, state in states.items() if state != "intact"]
        if bad:
            raise ShortfallError(
                f"verify {config.root}: {len(bad)} of {len(files)} files are not what their "
                f"manifests say: {', '.join(bad)}; restore them from a copy, or remove them and "
                "run the command that made them again"
            )
        num_tombstones = _check_taken_down(config.root, manifest)
    return Summary(
        stage="verify",
        num_in=len(files),
        num_out=len(files),
        unit="files",
        counts=dict(Counter(f"{file.name.split('/')[0]} intact" for file in files))
        | ({"tombstones kept": num_tombstones} if num_tombstones else {}),
        seconds=watch.seconds,
        details={"corpus digest": manifest.digest, "samples": manifest.num_samples},
    )


def _check_no_takedown_is_open(root: str) -> None:
    if storage.exists(Journal(root).url("plan.json")):
        raise ShortfallError(
            f"verify {root}: a takedown was begun and has not come to its end; finish it with "
            f"`carrara forget {root}`"
        )


def _check_taken_down(root: str, manifest: Manifest) -> int:
    """How many tombstones there are, all of them kept."""
    tombstones = read_tombstones(root)
    if not len(tombstones):
        return 0
    from pipeline.takedown.traces import traces

    found = traces(root, manifest, tombstones)
    if found:
        named = [f"{path} ({num})" for path, num in list(found.items())[:NUM_NAMED]]
        more = f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
        raise ShortfallError(
            f"verify {root}: {len(found)} files hold what was taken down: {', '.join(named)}{more};"
            f" run `carrara forget {root}`"
        )
    return len(tombstones)


def _check_all(config: Config, files: list[Expected]) -> Iterator[State]:
    def check(file: Expected) -> State:
        try:
            found = storage.sha256(storage.join(config.root, file.name))
        except FileNotFoundError:
            return "missing"
        return "intact" if found == file.sha256 else "damaged"

    with (
        track("verify", len(files), "files") as bar,
        ThreadPoolExecutor(config.num_threads) as pool,
    ):
        for state in pool.map(check, files):
            bar.advance(1)
            yield state
