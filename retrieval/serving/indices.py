"""The indices that are served, by name, each with what asks it; kept fresh while serving.

Reads   ROOT/manifest.json, ROOT/index/<encoder>/, ROOT/columns/
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from infra.cluster import Workers
from infra.errors import CarraraError, InputError
from retrieval.asking.asker import Asker
from retrieval.embedding.embeddings import MODALITIES
from retrieval.live.segments import LocalSegments
from retrieval.live.snapshot import OpenSegments
from retrieval.search import Hit, Retriever
from retrieval.serving.errors import log
from retrieval.serving.settings import ServeSettings, name_and_root

ID_BITS = 53
"""Of a uid's 128: what a JavaScript number holds exactly."""


@dataclass(frozen=True)
class Served:
    """One corpus's index."""

    name: str
    root: str
    retriever: Retriever
    asker: Asker

    @property
    def public_encoder(self) -> str:
        return public_name(self.retriever.encoder)

    def hit(self, uid: str) -> Hit | None:
        """A sample that was not asked for by likeness; None for what is not there."""
        state = self.retriever.state
        row = state.row_of(uid)
        return None if row is None else state.hits(np.array([row]), np.ones(1))[0]

    def hits_of_ids(self, ids: Sequence[int]) -> list[Hit]:
        """Raises InputError for an id of no sample."""
        state = self.retriever.state
        rows = [state.row_beginning(sample_id, ID_BITS) for sample_id in ids]
        if None in rows:
            raise InputError(f"id {ids[rows.index(None)]}: no such sample in index {self.name}")
        return state.hits(np.array(rows, np.int64), np.ones(len(rows)))

    def refresh(self) -> bool:
        """Take up a new index or new takedowns; keep what there is where that can't be read."""
        try:
            return self.retriever.refresh()
        except (CarraraError, FileNotFoundError) as error:
            log(f"{self.name}: goes on with the index it has ({error})")
            return False

    def without_paths(self, message: str) -> str:
        """With the names that clients know in place of where things lie."""
        message = message.replace(self.root, self.name)
        return message.replace(self.retriever.encoder, self.public_encoder)

    def described(self) -> dict[str, Any]:
        """An IndexMessage."""
        from retrieval.encoding.towers import multilingual_of

        manifest = self.retriever.manifest
        return {
            "name": self.name,
            "encoder": self.public_encoder,
            "num_rows": self.retriever.num_rows,
            "modalities": list(MODALITIES),
            "multilingual": multilingual_of(self.retriever.encoder) is not None,
            "safe": self.asker.safety is not None,
            "columns": self.retriever.state.columns.names,
            "promise": manifest.promise,
            "measured": manifest.measured,
        }


class Indices:
    """By name, in the order of the command line."""

    def __init__(self, served: list[Served]) -> None:
        self.by_name = {one.name: one for one in served}

    @classmethod
    def open(cls, settings: ServeSettings) -> "Indices":
        """Raises InputError where a corpus has no index, ConfigError where actors are to hold it
        and no Ray cluster answers."""
        served = []
        for text in settings.roots:
            name, root = name_and_root(text)
            retriever = Retriever.open(root, settings.encoder, _opener(settings))
            asker = Asker(retriever, fetch=settings.fetch, device=settings.device)
            served.append(Served(name, root, retriever, asker))
        return cls(served)

    def named(self, name: str | None) -> Served:
        """None: the first. Raises HTTPException 404 for a name that is none."""
        if name is None:
            return next(iter(self.by_name.values()))
        if name not in self.by_name:
            have = ", ".join(self.by_name)
            raise HTTPException(404, f"no index {name[:100]!r}; there are: {have}")
        return self.by_name[name]

    def without_paths(self, message: str) -> str:
        for served in self.by_name.values():
            message = served.without_paths(message)
        return message


def _opener(settings: ServeSettings) -> OpenSegments:
    if not settings.segment_actors:
        return LocalSegments
    from retrieval.live.remote import RemoteSegments

    workers = Workers(address=os.environ.get("RAY_ADDRESS") or "auto")
    return RemoteSegments.opener(workers, settings.segment_actors)


def id_of(uid: str) -> int:
    """What clip-retrieval's clients know a sample by: the first 53 bits of its uid."""
    return int(uid[:16], 16) >> (64 - ID_BITS)


def public_name(encoder: str) -> str:
    """An encoder's name; of one in a local folder or file, only the last part."""
    is_listed = encoder.count("/") <= 1 and not encoder.startswith(("/", ".", "~"))
    return encoder if is_listed or encoder.startswith("hf-hub:") else encoder.rsplit("/", 1)[-1]
