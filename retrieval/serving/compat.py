"""clip-retrieval's endpoints, as its own clients and page speak to them (clip_back.py of 2.45).

What the original answers with 500 (a missing field, an unknown index or id) is 4xx with a message
here; else requests and answers are the same, but for `id`: there a row number, which changes with
every new state of an index; here the first 53 bits of the sample's uid, which does not, and which a
JavaScript number holds exactly (2^53 - 1 is the largest that all JSON readers agree on: RFC 8259,
section 6). Of n samples about n^2 / 2^54 pairs share one: none of a million, one of 130 million.
"""

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from infra.errors import InputError
from retrieval.asking.question import Question, Term
from retrieval.embedding.embeddings import Modality
from retrieval.search import Hit
from retrieval.serving.answers import MAX_PICTURES, json_response
from retrieval.serving.errors import RESPONSES, log_damage
from retrieval.serving.indices import ID_BITS, Served, id_of
from retrieval.serving.messages import MAX_NAME, MAX_TEXT, MAX_URL, Number, from_base64
from retrieval.serving.service import MAX_QUICK, service_of

router = APIRouter(responses=RESPONSES)

MAX_IDS = 10_000
"""Looked up at once."""

EmptyIsNone = BeforeValidator(lambda value: None if value == "" else value)
"""Its page sends "" for what is off."""


class KnnRequest(BaseModel):
    """A query by the first that is there of text, image, image_url and embedding_input."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    modality: Modality
    num_images: Annotated[int, Field(ge=0, le=1 << 20)]
    """Hits with all that is known of them; those behind have only id and similarity."""
    indice_name: Annotated[str, Field(max_length=MAX_NAME)]
    num_result_ids: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    """Hits in all; none: as many as num_images."""
    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    image: str | None = None
    """Base64."""
    image_url: Annotated[str, Field(max_length=MAX_URL)] | None = None
    embedding_input: Annotated[list[Number], Field(max_length=1 << 16)] | None = None
    use_mclip: bool = False
    deduplicate: bool = False
    use_safety_model: bool = False
    use_violence_detector: bool = False
    """Here the same as use_safety_model: one set of columns tells of both."""
    aesthetic_score: Annotated[Annotated[int, Field(ge=0, le=10)] | None, EmptyIsNone] = None
    aesthetic_weight: Annotated[Number | None, EmptyIsNone] = None

    @property
    def num_hits(self) -> int:
        return self.num_images if self.num_result_ids is None else self.num_result_ids

    def question(self) -> Question:
        return Question(
            terms=[self._term()],
            k=max(1, self.num_hits),
            modality=self.modality,
            safe=self.use_safety_model or self.use_violence_detector,
            dedup=self.deduplicate,
            multilingual=self.use_mclip,
            aesthetic_score=self.aesthetic_score,
            aesthetic_weight=self.aesthetic_weight,
        )

    def _term(self) -> Term:
        if self.text:
            return Term(text=self.text)
        if self.image:
            return Term(image=from_base64(self.image))
        if self.image_url:
            return Term(image_url=self.image_url)
        if self.embedding_input:
            return Term(embedding=self.embedding_input)
        raise InputError("nothing to look for: text, image, image_url or embedding_input")


class MetadataRequest(BaseModel):
    model_config = ConfigDict(frozen=True)

    ids: Annotated[list[Annotated[int, Field(ge=0, lt=1 << ID_BITS)]], Field(max_length=MAX_IDS)]
    indice_name: Annotated[str, Field(max_length=MAX_NAME)] | None = None


class KnnHit(BaseModel):
    """The sample's columns besides."""

    model_config = ConfigDict(extra="allow")

    id: int
    similarity: float
    image: str | None = None
    """A JPEG in base64."""


class MetadataAnswer(BaseModel):
    id: int
    metadata: dict[str, Any]


class PageConfig(BaseModel):
    """As clip-front reads it, and what this page wants to know beside that."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)

    default_backend: str
    default_index: str
    url_column: str
    allow_save: bool
    needs_key: bool
    inline_thumbnails: bool
    """To be asked for within answers: one by one they would use up a client's rate."""


@router.get("/indices-list")
async def indices_list(request: Request) -> list[str]:
    """Names."""
    return list(service_of(request).indices.by_name)


@router.post("/knn-service", response_model=list[KnnHit])
async def knn_service(request: Request, asked: KnnRequest) -> Response:
    """The samples nearest to words, a picture or an embedding."""
    service = service_of(request)
    served = service.indices.named(asked.indice_name)
    question = await service.prepared(served, asked.question())
    if asked.num_hits == 0:
        return json_response([])
    answer = await service.answer(served, question)
    shown = answer.hits[: asked.num_images]

    def render() -> list[dict[str, Any]]:
        images = _images(served, shown) if service.settings.pictures_in_answers else {}
        full = [hit.metadata | images.get(hit.uid, {}) | _ranked(hit) for hit in shown]
        return [*full, *(_ranked(hit) for hit in answer.hits[len(shown) :])]

    is_light = question.k <= MAX_QUICK and not service.settings.pictures_in_answers
    return json_response(render() if is_light else await service.compute(render))


@router.post("/metadata", response_model=list[MetadataAnswer])
async def metadata(request: Request, asked: MetadataRequest) -> Response:
    """All that is known of samples, by the ids that /knn-service gave; unknown ids are 400."""
    service = service_of(request)
    if not asked.ids:
        return json_response([])
    if asked.indice_name is None:
        raise InputError("indice_name: missing; /indices-list has the names")
    served = service.indices.named(asked.indice_name)

    def look_up() -> list[dict[str, Any]]:
        hits = served.hits_of_ids(asked.ids)
        images = _images(served, hits) if service.settings.pictures_in_answers else {}
        return [
            {"id": id_of(hit.uid), "metadata": hit.metadata | images.get(hit.uid, {})}
            for hit in hits
        ]

    return json_response(await service.compute(look_up))


@router.get("/config.json")
async def config_json(request: Request) -> PageConfig:
    """What the page begins with."""
    service = service_of(request)
    return PageConfig(
        default_backend=service.settings.public_url or str(request.base_url),
        default_index=next(iter(service.indices.by_name)),
        url_column="url",
        allow_save=service.settings.allow_save,
        needs_key=service.settings.keys is not None,
        inline_thumbnails=service.settings.rate_limit > 0,
    )


@router.get("/health")
async def health() -> dict[str, Literal["ok"]]:
    """Answered whatever the load: the process lives and its event loop turns."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """For Prometheus; clip-retrieval's histograms by their names, and more."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


def _ranked(hit: Hit) -> dict[str, Any]:
    return {"id": id_of(hit.uid), "similarity": hit.similarity}


def _images(served: Served, hits: list[Hit]) -> dict[str, dict[str, str]]:
    images = served.retriever.state.read_images(hits[:MAX_PICTURES], log_damage)
    return {uid: {"image": base64.b64encode(data).decode()} for uid, data in images.items()}
