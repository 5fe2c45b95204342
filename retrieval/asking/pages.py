"""Answers to look at: a page that needs no network, and a contact sheet."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra import storage
from retrieval.asking.question import Answer, Question
from retrieval.encoding.pictures import decode_picture

if TYPE_CHECKING:
    from PIL import Image

    from retrieval.search import Hit, Retriever

THUMBNAIL_SIZE = 256
NUM_READ = 32
"""Encoded pictures in memory at once."""
SHEET_COLUMNS = 5
MISSING = "#cccccc"
"""In place of a picture that was taken down while the page was made."""


@dataclass(frozen=True)
class Asked:
    """A question and its answer, as pages show them."""

    label: str
    """The question in words."""
    question: Question
    answer: Answer


def read_pictures(retriever: "Retriever", hits: Sequence["Hit"]) -> "dict[str, Image.Image]":
    """By uid, one for each hit: small, since of large ones memory holds few."""
    from PIL import Image

    missing = Image.new("RGB", (THUMBNAIL_SIZE, THUMBNAIL_SIZE), MISSING)
    pictures = {hit.uid: missing for hit in hits}
    for start in range(0, len(hits), NUM_READ):
        images = retriever.read_images(hits[start : start + NUM_READ])
        pictures |= {uid: _thumbnail(decode_picture(data)) for uid, data in images.items()}
    return pictures


def write_sheet(url: str, asked: Sequence[Asked], pictures: "dict[str, Image.Image]") -> None:
    """One sheet of all hits, the sheets of several questions one below the other."""
    from PIL import Image

    from pipeline.pages.contact_sheet import contact_sheet

    sheets = []
    for one in asked:
        hits = one.answer.hits
        captions = [f"{hit.similarity:.3f} {hit.caption}" for hit in hits]
        if len(asked) > 1:
            captions = [f"{one.label}\n{caption}" for caption in captions]
        sheets.append(contact_sheet([pictures[hit.uid] for hit in hits], captions, SHEET_COLUMNS))
    whole = Image.new(
        "RGB",
        (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)),
        "white",
    )
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    with storage.publish(url) as path:
        whole.save(path, "PNG")


def write_page(
    url: str, asked: Sequence[Asked], retriever: "Retriever", pictures: "dict[str, Image.Image]"
) -> None:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("query.html").render(
        asked=asked,
        query_pictures=[_query_pictures(one.question) for one in asked],
        sources={uid: data_uri(picture) for uid, picture in pictures.items()},
        encoder=retriever.encoder,
        num_rows=retriever.num_rows,
    )
    storage.publish_text(url, text)


def data_uri(picture: "Image.Image") -> str:
    buffer = io.BytesIO()
    _thumbnail(picture).save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _thumbnail(picture: "Image.Image") -> "Image.Image":
    thumbnail = picture.copy()
    thumbnail.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    return thumbnail


def _query_pictures(question: Question) -> list[str]:
    terms = question.terms
    return [data_uri(decode_picture(term.image)) for term in terms if term.image is not None]
