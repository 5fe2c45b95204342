"""Search a corpus by words or by picture, from the command line.

    carrara query ROOT "french cat" -k 10 --png hits.png
    carrara query ROOT --image cat.jpg --json

Reads   ROOT/index/<encoder>/ and, for --html and --png, ROOT/shards/
Writes  the page and the contact sheet asked for; the page needs no network
"""

import base64
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import Field

from infra import storage
from infra.config import POSITIONAL, Place, StageConfig
from infra.errors import ConfigError, ConflictError, InputError
from infra.summary import Stopwatch, Summary
from pipeline.fetching.fetch import Failure, Fetcher, FetchSettings
from retrieval.embeddings import Modality

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from retrieval.search import Hit, Retriever

THUMBNAIL_SIZE = 256
SHEET_COLUMNS = 5


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    text: Annotated[str | None, POSITIONAL] = None
    """What to look for, in words."""
    k: Annotated[int, Parameter(alias="-k"), Field(ge=1)] = 10
    """How many hits."""
    image: str | None = None
    """Look for what resembles this picture: a file or a URL."""
    modality: Modality = "image"
    """Compare the query with pictures (image) or with captions (text)."""
    encoder: str | None = None
    """Whose index; none: the only one there is."""
    device: str = "cpu"
    """Where the query is encoded: cpu, cuda."""
    html: str | None = None
    """Write a page of the hits here."""
    png: str | None = None
    """Write a contact sheet of the hits here."""
    fetch: FetchSettings = FetchSettings()


def run(config: Config) -> Summary:
    """Raises InputError for a corpus without an index or a picture that can't be used."""
    if (config.text is None) == (config.image is None):
        raise ConfigError(
            "a query is words or a picture: `carrara query ROOT WORDS` or `carrara query ROOT "
            f"--image FILE_OR_URL`, {'both were' if config.text else 'neither was'} given"
        )
    if config.text is not None and not config.text.strip():
        raise ConfigError(f"query {config.text!r}: no words; expected what to look for")
    with Stopwatch() as watch:
        # Before the encoder, which takes seconds to load: most mistakes are found here.
        from retrieval.search import Retriever

        retriever = Retriever.open(config.root, config.encoder)
        picture = _read_picture(config) if config.image is not None else None
        (hits,) = retriever.search(_encode(config, retriever, picture), config.k, config.modality)
        outputs = _write_pages(config, retriever, hits, picture)
    return Summary(
        stage="query",
        num_in=retriever.num_rows,
        num_out=len(hits),
        seconds=watch.seconds,
        outputs=outputs,
        details={
            "query": config.text if config.text is not None else config.image,
            "modality": config.modality,
            "encoder": retriever.encoder,
            # Through JSON, for columns of the user's own list whose values JSON has no form for.
            "hits": json.loads(json.dumps([asdict(hit) for hit in hits], default=str)),
        },
        table=[_row(hit) for hit in hits],
    )


def _row(hit: "Hit") -> dict[str, object]:
    return {
        "rank": hit.rank,
        "similarity": hit.similarity,
        "caption": hit.caption,
        "url": hit.url,
        "uid": hit.uid,
    }


def _encode(config: Config, retriever: "Retriever", picture: "Image.Image | None") -> "np.ndarray":
    """The query as a vector [1, d]."""
    from retrieval.encoder import load_encoder

    encoder = load_encoder(retriever.encoder, config.device)
    if encoder.weights_digest != retriever.manifest.weights_digest:
        raise ConflictError(
            f"encoder {encoder.name!r}: its weights changed since the index was made (sha256 "
            f"{encoder.weights_digest[:16]}, then {retriever.manifest.weights_digest[:16]}); run "
            f"`carrara embed` and `carrara index` on {config.root} again, with --overwrite"
        )
    if picture is not None:
        return encoder.encode_images([picture])
    assert config.text is not None
    return encoder.encode_texts([config.text])


def _read_picture(config: Config) -> "Image.Image":
    from retrieval.pictures import decode_picture

    assert config.image is not None
    place = config.image
    if place.startswith(("http://", "https://")):
        answer = Fetcher(config.fetch).fetch(place)
        if isinstance(answer, Failure):
            raise InputError(f"--image {place}: can't be fetched ({answer.reason})")
        data = answer.data
    else:
        try:
            data = storage.read_bytes(place)
        except FileNotFoundError:
            raise InputError(f"--image {place}: no such file; expected a picture") from None
    try:
        return decode_picture(data)
    except InputError as error:
        raise InputError(f"--image {place}: {error}; expected a JPEG, PNG, WebP, ...") from None


# Pages


def _write_pages(
    config: Config, retriever: "Retriever", hits: list["Hit"], picture: "Image.Image | None"
) -> dict[str, str]:
    """The paths written, by kind."""
    if config.html is None and config.png is None:
        return {}
    from retrieval.pictures import decode_picture

    images = retriever.read_images(hits)
    pictures = [decode_picture(images[hit.uid]) for hit in hits]
    outputs = {}
    if config.png is not None:
        from pipeline.pages.contact_sheet import contact_sheet

        captions = [f"{hit.similarity:.3f} {hit.caption}" for hit in hits]
        with storage.publish(config.png) as path:
            contact_sheet(pictures, captions, SHEET_COLUMNS).save(path, "PNG")
        outputs["png"] = config.png
    if config.html is not None:
        page = _page(config, retriever, hits, pictures, picture)
        storage.publish_text(config.html, page)
        outputs["html"] = config.html
    return outputs


def _page(
    config: Config,
    retriever: "Retriever",
    hits: list["Hit"],
    pictures: list["Image.Image"],
    picture: "Image.Image | None",
) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("query.html").render(
        query=config.text if config.text is not None else config.image,
        query_picture=None if picture is None else _data_uri(picture),
        hits=list(zip(hits, map(_data_uri, pictures), strict=True)),
        modality=config.modality,
        encoder=retriever.encoder,
        num_rows=retriever.num_rows,
    )


def _data_uri(picture: "Image.Image") -> str:
    thumbnail = picture.copy()
    thumbnail.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
