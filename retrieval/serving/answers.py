"""Answers as JSON: what a hit is told with, and cursors from one page to the next."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from starlette.responses import Response

from infra.config import digest_of
from infra.errors import InputError
from retrieval.asking.question import Answer, Question
from retrieval.search import Hit
from retrieval.serving.indices import Served
from retrieval.serving.messages import Extra
from retrieval.serving.thumbnails import Thumbnails

THUMBNAIL_SIZE = 256
MAX_PICTURES = 200
"""In one answer; hits behind them come without."""


def json_response(value: Any) -> Response:
    """Values of a user's own columns that JSON has no form for as text, NaN as null."""
    return Response(msgspec.json.encode(value, enc_hook=str), media_type="application/json")


def rendered(
    served: Served,
    thumbnails: Thumbnails,
    question: Question,
    answer: Answer,
    extras: Sequence[Extra],
) -> dict[str, Any]:
    """A SearchAnswer."""
    every = [*answer.hits, *(hit for hits in answer.folded.values() for hit in hits)]
    added: dict[str, dict[str, Any]] = {hit.uid: {} for hit in every}
    if "thumbnail" in extras:
        for uid, data in thumbnails.of(every[:MAX_PICTURES], THUMBNAIL_SIZE).items():
            added[uid]["thumbnail"] = base64.b64encode(data).decode()
    if "embedding" in extras:
        # By uid: the rows are those of the state that answered, which may be another by now.
        state = served.retriever.state
        there = {hit.uid: row for hit in every if (row := state.row_of(hit.uid)) is not None}
        vectors = state.vectors(np.array([*there.values()], np.int64), question.modality)
        for uid, vector in zip(there, vectors.tolist(), strict=True):
            added[uid]["embedding"] = vector

    def told(hit: Hit) -> dict[str, Any]:
        folded = answer.num_folded.get(hit.uid, 0)
        return _hit(hit) | {"folded": folded} | added[hit.uid]

    return {
        "hits": [told(hit) for hit in answer.hits],
        "folded": {uid: [told(hit) for hit in hits] for uid, hits in answer.folded.items()},
        "hidden": answer.hidden,
        "notes": [served.without_paths(note) for note in answer.notes],
        "cursor": None,
        "copy": None,
    }


def _hit(hit: Hit) -> dict[str, Any]:
    metadata = hit.metadata
    return {
        "row": hit.row,
        "uid": hit.uid,
        "similarity": hit.similarity,
        "caption": hit.caption,
        "url": hit.url,
        "width": metadata.get("width"),
        "height": metadata.get("height"),
        "metadata": metadata,
    }


# Cursors


def next_cursor(question: Question, answer: Answer, max_results: int) -> str | None:
    """None behind the last hit, and where the service goes no further."""
    reached = question.offset + len(answer.hits)
    if len(answer.hits) < question.k or reached + question.k > max_results:
        return None
    token = json.dumps([reached, _identity(question)])
    return base64.urlsafe_b64encode(token.encode()).decode()


def offset_of(cursor: str, question: Question) -> int:
    """Raises InputError for a cursor that is not of this question."""
    try:
        reached, identity = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if isinstance(reached, int) and reached >= 0 and identity == _identity(question):
            return reached
    except (ValueError, TypeError):
        pass
    raise InputError("cursor: not of this question; leave it out to begin with the first page")


def _identity(question: Question) -> str:
    """Of all that decides the order of the hits; how many come at once does not."""
    pictures = [hashlib.sha256(term.image or b"").hexdigest() for term in question.terms]
    asked = question.model_dump_json(
        exclude={"k": True, "offset": True, "terms": {"__all__": {"image"}}}
    )
    return digest_of([asked, pictures])
