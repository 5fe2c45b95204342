"""Pictures that lie somewhere: in a corpus, or as files in a folder.

Reads   ROOT/manifest.json, ROOT/shards/, ROOT/selections/; or a folder of .png, .jpg, .webp
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from infra import storage
from infra.errors import InputError
from pipeline.corpus import (
    SUCCESS,
    Shard,
    iter_samples,
    manifest_url,
    read_manifest,
    read_rows,
    read_selection,
)
from pipeline.pixels.picture_header import UnusableError
from retrieval.encoding.pictures import decode_picture
from training.streaming.pixels import decode_into, set_up_decoding

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FILES_AT_ONCE = 500


@dataclass(frozen=True)
class Chunk:
    """Pictures that are read together: of one shard, or of a folder."""

    home: str
    """The corpus, or the folder."""
    names: tuple[str, ...]
    """Uids, or names of files."""
    shard: Shard | None = None


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str | None
    image: Image.Image


def find_pictures(home: str, selection: str | None = None) -> list[Chunk]:
    """All there are; raises InputError where there are none."""
    if storage.exists(manifest_url(home)):
        chunks = _in_corpus(home, selection)
    else:
        names = [n for n in storage.list_names(home) if n.lower().endswith(SUFFIXES)]
        starts = range(0, len(names), FILES_AT_ONCE)
        chunks = [Chunk(home, tuple(names[i : i + FILES_AT_ONCE])) for i in starts]
    if not any(chunk.names for chunk in chunks):
        chosen = f" that selection {selection!r} keeps" if selection else ""
        raise InputError(
            f"{home}: no pictures{chosen}; expected a corpus, or a folder of {', '.join(SUFFIXES)}"
        )
    return chunks


def choose(chunks: list[Chunk], num: int, seed: int) -> list[str]:
    """Names of at most so many pictures, in a random order that the seed decides."""
    names = [name for chunk in chunks for name in chunk.names]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, len(names)])))
    return [names[i] for i in rng.permutation(len(names))[:num]]


def among(chunks: list[Chunk], names: list[str]) -> list[Chunk]:
    """The same chunks with these pictures alone."""
    wanted = set(names)
    kept = (replace(c, names=tuple(n for n in c.names if n in wanted)) for c in chunks)
    return [chunk for chunk in kept if chunk.names]


def read_pictures(chunk: Chunk, size: int | None) -> Iterator[Picture]:
    """Opaque and, with `size`, their middle, that many pixels a side: cut and scaled by the very
    code that training does it with, for scores tell one way of resizing from another.

    Raises InputError for one that can't be decoded.
    """
    set_up_decoding()
    read = _read_files(chunk) if chunk.shard is None else _read_shard(chunk)
    for name, caption, data in read:
        try:
            image = decode_picture(data) if size is None else _square(data, size)
        except InputError as error:
            raise InputError(f"{chunk.home}: {name}: {error}") from None
        yield Picture(name, caption, image)


def _square(data: bytes, size: int) -> Image.Image:
    pixels = np.empty((size, size, 3), np.uint8)
    try:
        decode_into(pixels, data)
    except UnusableError as error:
        raise InputError(f"undecodable picture ({error.reason})") from error
    return Image.fromarray(pixels)


def _in_corpus(root: str, selection: str | None) -> list[Chunk]:
    kept = None
    if selection is not None:
        table = read_selection(root, selection)
        kept = table.filter(table["keep"])["uid"].combine_chunks()
    chunks = []
    for shard in read_manifest(root).shards:
        rows = read_rows(root, shard, ["uid", "status"])
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        if kept is not None:
            rows = rows.filter(pc.is_in(rows["uid"], kept))
        chunks.append(Chunk(root, tuple(rows["uid"].to_pylist()), shard))
    return chunks


def _read_shard(chunk: Chunk) -> Iterator[tuple[str, str | None, bytes]]:
    assert chunk.shard is not None
    wanted = set(chunk.names)
    for sample in iter_samples(chunk.home, chunk.shard):
        if sample.uid in wanted:
            yield sample.uid, sample.caption, sample.image


def _read_files(chunk: Chunk) -> Iterator[tuple[str, str | None, bytes]]:
    """With the caption that `carrara sample` left in a PNG's text, where it did."""
    for name in chunk.names:
        data = storage.read_bytes(storage.join(chunk.home, name))
        yield name, _caption_inside(data), data


def _caption_inside(data: bytes) -> str | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            caption = image.info.get("caption")
    except (OSError, ValueError):
        return None  # whoever decodes it says what is wrong
    return str(caption) if caption is not None else None
