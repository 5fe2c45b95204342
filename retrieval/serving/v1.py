"""The service's own endpoints, under /v1: what the page and programs ask."""

import asyncio
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from infra.errors import ConflictError, InputError
from retrieval.asking.question import Answer
from retrieval.asking.saved import save_selection
from retrieval.serving.answers import json_response, next_cursor, offset_of, rendered
from retrieval.serving.errors import RESPONSES, ErrorMessage
from retrieval.serving.indices import Served
from retrieval.serving.messages import (
    MAX_NAME,
    MAX_TEXT,
    BatchAnswer,
    BatchRequest,
    Extra,
    IndexMessage,
    QuestionMessage,
    SearchAnswer,
    SearchRequest,
    SelectionAnswer,
    SelectionRequest,
)
from retrieval.serving.service import MAX_QUICK, Service, service_of
from retrieval.serving.thumbnails import SIZES

THUMBNAIL_MAX_AGE_S = 300
"""How long browsers may keep a thumbnail; a takedown reaches them after that."""

router = APIRouter(prefix="/v1", responses=RESPONSES)


@router.get("/indices")
async def indices(request: Request) -> list[IndexMessage]:
    """What is served."""
    service = service_of(request)
    served = service.indices.by_name.values()
    described = await service.compute(lambda: [one.described() for one in served])
    return [IndexMessage(**one) for one in described]


@router.post("/search", response_model=SearchAnswer)
async def search(request: Request, asked: SearchRequest) -> Response:
    """The samples nearest to words, pictures, embeddings and samples, added and subtracted."""
    service = service_of(request)
    served = service.indices.named(asked.index)
    return json_response(await _answer(service, served, asked, asked.with_, asked.cursor))


@router.get("/search", response_model=SearchAnswer)
async def search_by_address(
    request: Request,
    query: Annotated[str, Query(min_length=1, max_length=MAX_TEXT)],
    index: Annotated[str | None, Query(max_length=MAX_NAME)] = None,
    k: Annotated[int, Query(ge=1, le=1 << 20)] = 40,
) -> Response:
    """The same for words alone, in an address: /v1/search?query=cat - cartoon"""
    asked = SearchRequest(query=query, index=index, k=k)
    return await search(request, asked)


@router.post("/batch", response_model=BatchAnswer)
async def batch(request: Request, asked: BatchRequest) -> Response:
    """Several questions to one index; the first that can't be answered ends it."""
    service = service_of(request)
    if len(asked.questions) > service.settings.max_questions:
        raise InputError(
            f"{len(asked.questions)} questions; this service takes "
            f"{service.settings.max_questions} at once"
        )
    num_hits = sum(question.k for question in asked.questions)
    if num_hits > service.settings.max_results:
        raise InputError(
            f"questions for {num_hits:,} hits; this service gives "
            f"{service.settings.max_results:,} at once"
        )
    served = service.indices.named(asked.index)
    answers = [_answer(service, served, question, asked.with_) for question in asked.questions]
    return json_response({"answers": await asyncio.gather(*answers)})


@router.get(
    "/thumbnail/{index}/{uid}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
async def thumbnail(
    request: Request, index: str, uid: str, size: Annotated[int, Query(ge=1, le=SIZES[-1])] = 256
) -> Response:
    """A sample's picture as a JPEG; `size` of the longer side, at most the picture's own."""
    service = service_of(request)
    served = service.indices.named(index)

    def read() -> bytes | None:
        hit = served.hit(uid)
        found = service.thumbnails[index].of([hit], size) if hit else {}
        return found.get(uid)

    data = await service.compute(read)
    if data is None:
        raise HTTPException(404, "no such sample in this index, or its picture can't be read")
    headers = {
        # What a proxy kept it would give to others: without a key, and after a takedown.
        "Cache-Control": f"private, max-age={THUMBNAIL_MAX_AGE_S}",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(data, headers=headers, media_type="image/jpeg")


@router.post(
    "/selections",
    responses={
        403: {"model": ErrorMessage, "description": "saving is off, or asked by another's page"},
        409: {"model": ErrorMessage, "description": "the name stands for something else"},
    },
)
async def selections(request: Request, asked: SelectionRequest) -> SelectionAnswer:
    """Save samples as a selection of the corpus, where the service was started for it."""
    service = service_of(request)
    if not service.settings.allow_save:
        raise HTTPException(403, "saving is off; `carrara serve --allow-save` turns it on")
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).netloc != request.headers.get("host"):
        # Anyone's page may ask, but not write through a visitor's browser.
        raise HTTPException(403, "saving is for the service's own page and for programs")
    served = service.indices.named(asked.index)

    def save() -> SelectionAnswer:
        done = save_selection(served.root, asked.name, asked.uids, f"saved from {served.name}")
        message = f"saved {done.num_out:,} samples as the selection {asked.name!r}"
        return SelectionAnswer(name=asked.name, rows=done.num_out, message=message)

    try:
        return await service.compute(save)
    except ConflictError:
        raise HTTPException(
            409, f"name {asked.name!r}: stands for another selection; choose another"
        ) from None


async def _answer(
    service: Service,
    served: Served,
    asked: QuestionMessage,
    extras: list[Extra],
    cursor: str | None = None,
) -> dict[str, Any]:
    question = asked.question()
    if cursor is not None:
        offset = offset_of(cursor, question)
        question = question.model_copy(update={"offset": offset})
    prepared = await service.prepared(served, question)
    answer = await service.answer(served, prepared)

    def render() -> dict[str, Any]:
        thumbnails = service.thumbnails[served.name]
        told = rendered(served, thumbnails, question, answer, extras)
        told["cursor"] = next_cursor(question, answer, service.settings.max_results)
        if "copy" in extras and (verdict := service.copies[served.name].verdict(prepared)):
            told["copy"] = verdict.to_json()
        return told

    return render() if _is_light(answer, extras) else await service.compute(render)


def _is_light(answer: Answer, extras: list[Extra]) -> bool:
    num_hits = len(answer.hits) + sum(map(len, answer.folded.values()))
    return not extras and num_hits <= MAX_QUICK
