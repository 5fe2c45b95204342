"""The requests and answers of /v1, as OpenAPI describes them.

Bounds are set here so that whatever passes is a question that can be asked.
"""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import InputError
from retrieval.asking.algebra import parse_algebra
from retrieval.asking.question import MAX_TERMS, Question, Term, make_term, reason_of
from retrieval.embedding.embeddings import Modality

MAX_TEXT, MAX_SQL, MAX_URL, MAX_NAME, MAX_CURSOR = 10_000, 4_000, 8_000, 200, 200
"""Characters. Text encoders cut at some 77 tokens; a URL as RFC 9110, section 4.1, has it."""

MAX_NUMBER = 1e6
"""Of an embedding or a weight; only directions count, and float32 must hold their squares."""

Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
Uid = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Extra = Literal["embedding", "thumbnail", "copy"]


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SearchTerm(Message):
    """One of text, image, image_url, embedding and uid, and how much it counts."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None
    image: Annotated[str, Field(min_length=1)] | None = None
    """A JPEG, PNG, WebP, ... in base64."""
    image_url: Annotated[str, Field(min_length=1, max_length=MAX_URL)] | None = None
    """A picture of the web; the service fetches it, from public addresses alone."""
    embedding: Annotated[list[Number], Field(min_length=1, max_length=1 << 16)] | None = None
    """As wide as the index; its length does not matter."""
    uid: Uid | None = None
    """A sample of the corpus."""
    weight: Number = 1.0
    """Negative: away from it."""

    def term(self, place: str) -> Term:
        image = None if self.image is None else from_base64(self.image)
        return make_term(place, **self.model_dump(exclude={"image"}), image=image)


class QuestionMessage(Message):
    """What to look for, in `terms` or in words of algebra, and among which samples."""

    terms: Annotated[list[SearchTerm], Field(max_length=MAX_TERMS)] = []
    query: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    """In place of `terms`: `cat + 0.5*dog - cartoon`."""
    k: Annotated[int, Field(ge=1, le=1 << 20)] = 40
    """How many hits; exactly so many where there are."""
    modality: Modality = "image"
    """Compare with pictures (image) or with captions (text)."""
    where: Annotated[str, Field(min_length=1, max_length=MAX_SQL)] | None = None
    """SQL that is true for the samples to look among: `width > 512 and language = 'en'`."""
    safe: bool = False
    """Leave out what the safety columns don't hold for safe."""
    dedup: bool = False
    """Show one picture of each group of near copies; the others are folded under it."""
    unique_urls: bool = False
    """Show one sample of each URL."""
    diversify: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """0: by nearness alone; 1: by being unlike what is shown already alone."""
    multilingual: bool = False
    """Encode words by the multilingual text tower of the same space."""
    aesthetic_score: Annotated[int, Field(ge=0, le=10)] | None = None
    """Move the query towards pictures of this rating."""
    aesthetic_weight: Number | None = None
    """By how much."""

    def question(self, offset: int = 0) -> Question:
        """Raises InputError where there is nothing to look for, or both ways to say it."""
        if bool(self.terms) == bool(self.query):
            raise InputError(
                "a question has `terms` or a `query`; "
                + ("both were given" if self.terms else "neither was")
            )
        asked = self.terms or _terms_of(self.query or "")
        terms = [term.term(f"terms.{number}") for number, term in enumerate(asked)]
        own = {"terms", "query", *SearchRequest.model_fields} - {*Question.model_fields} | {"terms"}
        return Question(terms=terms, offset=offset, **self.model_dump(exclude=own))


class SearchRequest(QuestionMessage):
    index: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    """Which; none: the first."""
    cursor: Annotated[str, Field(max_length=MAX_CURSOR)] | None = None
    """Of the answer to the same question: go on behind its last hit."""
    with_: Annotated[list[Extra], Field(alias="with", max_length=3)] = []
    """What to send along: of each hit its embedding or thumbnail, and of the question's picture
    whether it is a copy of one in the corpus, which takes as long as several answers."""


class BatchRequest(Message):
    index: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    questions: Annotated[list[QuestionMessage], Field(min_length=1)]
    with_: Annotated[list[Extra], Field(alias="with", max_length=3)] = []


class SelectionRequest(Message):
    """Samples to save as a selection, which `pack` and `train` take."""

    index: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    uids: Annotated[list[Uid], Field(min_length=1, max_length=100_000)]


class HitMessage(Message):
    row: int
    """Where the index has it; another state of the corpus has it elsewhere: keep the uid."""
    uid: str
    similarity: float
    """Cosine."""
    caption: str | None
    url: str | None
    width: int | None
    height: int | None
    metadata: dict[str, Any]
    """All that is known of the sample."""
    folded: int
    """How many near copies are under this hit."""
    embedding: list[float] | None = None
    thumbnail: str | None = None
    """A JPEG in base64."""


class CopyMessage(Message):
    """Whether the question's picture is a copy of one in the corpus, and how that is known."""

    is_copy: bool
    uid: str
    similarity: float
    false_positive_rate: float
    hash_distance: int | None
    position: str
    evidence: str


class SearchAnswer(Message):
    hits: list[HitMessage]
    folded: dict[str, list[HitMessage]]
    """By uid of the hit that is shown: its near copies, a hundred of them at most."""
    hidden: dict[str, int]
    """By reason: how many were passed over before the last hit."""
    notes: list[str]
    cursor: str | None = None
    """For the next page; null: there is none."""
    copy_: Annotated[CopyMessage | None, Field(alias="copy")] = None
    """Where `with` asks for it and the question is one picture."""


class BatchAnswer(Message):
    answers: list[SearchAnswer]


class SelectionAnswer(Message):
    name: str
    rows: int
    message: str


class IndexMessage(Message):
    name: str
    encoder: str
    num_rows: int
    modalities: list[Modality]
    multilingual: bool
    """Whether words of other languages have a tower of their own."""
    safe: bool
    """Whether the corpus has the columns that `safe` goes by."""
    columns: list[str]
    """What `where` may ask."""
    promise: dict[str, Any] | None
    measured: dict[str, Any] | None


def _terms_of(query: str) -> list[SearchTerm]:
    """Within the same bounds as terms that are given as such."""
    terms = parse_algebra(query)
    if len(terms) > MAX_TERMS:
        raise InputError(f"query: {len(terms)} terms; expected {MAX_TERMS} at most")
    try:
        return [SearchTerm(**term.model_dump(exclude_none=True)) for term in terms]
    except ValidationError as error:
        raise InputError(f"query: {reason_of(error)}") from None


def from_base64(text: str) -> bytes:
    """Raises InputError for what is no base64; a data: prefix and line ends are let pass."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image: not base64; expected an encoded picture in base64") from None
