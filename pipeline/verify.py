"""Reread a corpus and everything derived from it against the digests that were written with it.

    carrara verify ROOT

Reads   ROOT/manifest.json and every shard's tar and parquet; the files that the manifests under
        ROOT/columns, ROOT/embeddings and ROOT/index give a sha256 for; ROOT/selections
Writes  nothing
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ShortfallError
from infra.progress import track
from infra.records import read_record
from infra.summary import Stopwatch, Summary
from pipeline.corpus import Manifest, read_manifest

DERIVED = {"columns": "manifest.json", "embeddings": "manifest.json", "index": "index.json"}
"""Folders of folders, each of which names its files and their sha256 in this file."""

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


class _Files(BaseModel):
    """What the records of DERIVED have in common."""

    files: dict[str, str]


class _Digest(BaseModel):
    """What `verify` needs of a selection's record."""

    sha256: str


def run(config: Config) -> Summary:
    """Raises ShortfallError naming every file that is damaged or missing."""
    with Stopwatch() as watch:
        manifest = read_manifest(config.root)
        files = list(_files(config.root, manifest))
        states = dict(zip(files, _check_all(config, files), strict=True))
    bad = [f"{file.name} ({state})" for file, state in states.items() if state != "intact"]
    if bad:
        raise ShortfallError(
            f"verify {config.root}: {len(bad)} of {len(files)} files are not what their manifests "
            f"say: {', '.join(bad)}; restore them from a copy, or remove them and run the command "
            "that made them again"
        )
    return Summary(
        stage="verify",
        num_in=len(files),
        num_out=len(files),
        unit="files",
        counts=dict(Counter(f"{file.name.split('/')[0]} intact" for file in files)),
        seconds=watch.seconds,
        details={"corpus digest": manifest.digest, "samples": manifest.num_samples},
    )


def _files(root: str, manifest: Manifest) -> Iterator[Expected]:
    for shard in manifest.shards:
        yield Expected(f"shards/{shard.name}.tar", shard.sha256)
        yield Expected(f"shards/{shard.name}.parquet", shard.rows_sha256)
    for folder, record_name in DERIVED.items():
        for name in storage.list_names(storage.join(root, folder)):
            url = storage.join(root, folder, name, record_name)
            # No record: its command has not come to an end yet and will check for itself.
            if storage.exists(url):
                files = read_record(url, _Files).files
                for path, sha256 in files.items():
                    yield Expected(f"{folder}/{name}/{path}", sha256)
    for name in storage.list_names(storage.join(root, "selections")):
        if name.endswith(".toml"):
            record = read_record(storage.join(root, "selections", name), _Digest)
            yield Expected(f"selections/{name.removesuffix('.toml')}.parquet", record.sha256)


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
