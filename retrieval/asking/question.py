"""What is asked of an index, and what it answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.errors import InputError
from retrieval.embedding.embeddings import Modality

if TYPE_CHECKING:
    from retrieval.copies import CopyVerdict
    from retrieval.search import Hit

MAX_TERMS = 16
KINDS = ("text", "image", "image_url", "embedding", "uid")
"""What a term may be; each term is one of them."""


class Term(BaseModel):
    """A part of a question: words, a picture, an embedding, or a sample of the corpus."""

    # In JSON a picture is base64.
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )

    text: str | None = None
    image: bytes | None = Field(default=None, repr=False)
    """An encoded picture: JPEG, PNG, WebP, ..."""
    image_url: str | None = None
    embedding: list[float] | None = Field(default=None, repr=False)
    """As wide as the index; its length does not matter."""
    uid: str | None = None
    """A sample of the corpus: its picture, also where captions are searched."""
    weight: float = 1.0
    """How much it counts; negative: away from it."""

    @property
    def modality(self) -> Modality | None:
        """Where its vector comes from; None: an embedding may be of either."""
        if self.embedding is not None:
            return None
        return "image" if self.text is None else "text"

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a term is one of {', '.join(KINDS)}; {' and '.join(given) or 'none'} given"
            )
        if self.text is not None and not self.text.strip():
            raise ValueError(f"text {self.text!r}: no words; expected what to look for")
        if self.embedding is not None and not all(map(math.isfinite, self.embedding)):
            raise ValueError("embedding: has a NaN or infinity; expected numbers")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight {self.weight}: expected a finite number")
        return self


def make_term(place: str, **fields: Any) -> Term:
    """Raises InputError, which names the place, for what is no term."""
    try:
        return Term(**fields)
    except ValidationError as error:
        raise InputError(f"{place}: {reason_of(error)}") from None


class Question(BaseModel):
    """What to look for, where among the samples, and how many of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    terms: list[Term] = Field(min_length=1, max_length=MAX_TERMS)
    """Added up, each as a unit vector times its weight."""
    k: int = Field(default=40, ge=1)
    """How many hits: exactly so many where there are."""
    offset: int = Field(default=0, ge=0)
    """How many of the first hits to leave out: the page before this one."""
    modality: Modality = "image"
    """Compare with pictures (image) or with captions (text)."""
    where: str | None = None
    """SQL that is true for the samples to look among."""
    safe: bool = False
    """Leave out what the columns of safety signals don't hold for safe."""
    dedup: bool = False
    """Show one picture of each group of near copies; the others are folded under it."""
    unique_urls: bool = False
    """Show one sample of each URL."""
    diversify: float = Field(default=0.0, ge=0, le=1)
    """0: by nearness alone; 1: by being unlike what is shown already alone."""
    multilingual: bool = False
    """Encode words by the multilingual text tower of the same space."""
    aesthetic_score: int | None = Field(default=None, ge=0, le=10)
    """Move the query towards pictures of this rating, by aesthetic_weight."""
    aesthetic_weight: float | None = Field(default=None, allow_inf_nan=False)

    @property
    def asked_by(self) -> Modality | None:
        """What all its terms are; None: of both kinds, not known, or moved away from either."""
        is_moved = self.aesthetic_score is not None and bool(self.aesthetic_weight)
        if is_moved or any(term.weight <= 0 for term in self.terms):
            return None
        kinds = {term.modality for term in self.terms}
        return kinds.pop() if len(kinds) == 1 else None


@dataclass
class Answer:
    """The hits of one question, best first, and what is not among them and why."""

    hits: list["Hit"]
    """Exactly k, or all there are."""
    folded: dict[str, list["Hit"]] = field(default_factory=dict)
    """By uid of the hit that is shown: its near copies; the first of them, where there are many."""
    num_folded: dict[str, int] = field(default_factory=dict)
    """By the same: how many near copies there are among the candidates; of a hit that has so many
    that they were left out of the search, all of them."""
    hidden: dict[str, int] = field(default_factory=dict)
    """By reason: how many were passed over before the last hit and after the page before."""
    notes: list[str] = field(default_factory=list)
    """What else people should be told, a line each."""
    copy: "CopyVerdict | None" = None
    """Whether the one picture that was asked about is a copy; None: nobody looked."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By step: fetch, decode, encode_text, encode_image, filter, search, fold, metadata."""


def reason_of(error: ValidationError) -> str:
    """The first of what was found wrong, in one line."""
    return first_reason(error.errors())


def first_reason(errors: Sequence[Any]) -> str:
    """The same, of pydantic's errors: where, and what is wrong there."""
    first = errors[0]
    place = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason
