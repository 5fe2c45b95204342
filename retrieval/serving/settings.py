"""What the service serves, to whom and how much of it: light to import, as a stage's settings are.

Reads and writes no files.
"""

from typing import Annotated

from pydantic import Field, field_validator

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, Settings
from pipeline.fetching.fetch_settings import FetchSettings
from pipeline.pixels.pixel_settings import MAX_IMAGE_AREA


class QueryFetch(FetchSettings):
    """Someone waits for the answer: no second try, and no picture larger than phones make."""

    timeout: Annotated[float, EXECUTION_ONLY, Field(gt=0)] = 8.0
    """Seconds for the fetch in all: DNS, connecting, TLS, redirects and the last byte."""
    retries: Annotated[int, EXECUTION_ONLY, Field(ge=0)] = 0
    """How often a fetch is tried again after a time-out, a broken connection, 429 or 5xx."""
    max_bytes: int = Field(default=20_000_000, gt=0)
    """Give up answers that are longer."""


class ServeSettings(Settings):
    """Settings of the service beside its address."""

    roots: Annotated[tuple[str, ...], POSITIONAL, EXECUTION_ONLY] = Field(min_length=1)
    """Corpora with an index: folders or fsspec URLs; NAME=ROOT gives the index a name."""
    encoder: str | None = None
    """Whose index, where a corpus has several."""
    device: str = "cpu"
    """Where queries are encoded: cpu, cuda."""
    warm: bool = True
    """Load the encoder before the first request; else the first that needs it waits for it."""
    keys: Place | None = None
    """A file of API keys, a line each: NAME KEY. Requests without one of them are refused."""
    rate_limit: float = Field(default=0.0, ge=0)
    """Requests a second that each key, or each address, may make; 0: as many as it likes."""
    burst: int = Field(default=40, ge=1)
    """Requests that may come at once before the rate limit holds."""
    public_url: str | None = None
    """The address that people reach it by, where that is a proxy's; told to the page."""
    trusted_proxies: str = "127.0.0.1"
    """Addresses whose X-Forwarded-For is believed, with commas between; "*": all."""
    allow_save: bool = False
    """Let clients save selections into the corpus (POST /v1/selections)."""
    pictures_in_answers: bool = True
    """Put pictures into the answers of /knn-service, as base64; their URLs may be long dead."""
    max_request_bytes: int = Field(default=10_000_000, ge=1)
    """Refuse longer requests."""
    max_results: int = Field(default=10_000, ge=1)
    """The furthest hit that a question may reach, page by page, and hits of a batch in all."""
    max_questions: int = Field(default=100, ge=1)
    """In one batch."""
    max_image_area: int = Field(default=MAX_IMAGE_AREA, ge=1, le=MAX_IMAGE_AREA)
    """Refuse pictures of more pixels, by their header, before they are decoded."""
    max_waiting: int = Field(default=1000, ge=1)
    """Requests taken in at once; beyond, 503 with Retry-After."""
    max_wait_s: float = Field(default=30.0, gt=0)
    """A question that waited longer is refused with 503 instead of being answered too late."""
    num_threads: int = Field(default=4, ge=1)
    """For questions with filters or large pictures; all others are answered in batches."""
    segment_actors: int = Field(default=0, ge=0)
    """Hold the segments in so many actors of the Ray cluster that runs here or that $RAY_ADDRESS
    names; 0: in this process."""
    refresh_s: float = Field(default=2.0, gt=0)
    """How often to look for a new index or new takedowns."""
    fetch: QueryFetch = QueryFetch()
    """For queries by `image_url`."""

    @field_validator("roots")
    @classmethod
    def _check_names(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        names = [name_and_root(root)[0] for root in roots]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"several indices named {', '.join(twice)}; give each a name: NAME=ROOT"
            )
        return roots


def name_and_root(text: str) -> tuple[str, str]:
    """An index's name and its corpus: `NAME=ROOT`, else the folder's own name."""
    name, equals, root = text.partition("=")
    if not equals or "/" in name:
        name, root = "", text
    root = storage.absolute(root)
    return name or root.rstrip("/").rsplit("/", 1)[-1], root
