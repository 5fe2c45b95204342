"""Large sets of pictures, drawn by workers chunk by chunk, on one machine or many.

Writes  as files:   OUT/00000000.png ...; OUT/pictures.parquet (file, caption, number, seed), last
        as shards:  a corpus (pipeline/corpus.py) of PNGs, OUT/manifest.json last; whatever reads a
                    corpus reads it, `embed`, `query`, `evaluate` and WebDataset's loader too

Safe to kill: the same command draws only the chunks that are missing. A picture follows from the
seed and its number; how many workers there were and in which order they came leaves no trace.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import digest_of
from infra.errors import ConflictError, ShortfallError
from infra.stamp import Stamp, claim
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    Shard,
    manifest_url,
    read_manifest,
    shard_files,
    shard_url,
    write_manifest,
    write_shard,
)
from pipeline.sample import Sample, sample_uid
from training.drawing.gpus import num_threads, with_gpus
from training.drawing.png import png_bytes
from training.drawing.request import Request, draw
from training.drawing.wanted import Wanted
from training.model import load_model
from training.sheet import to_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Layout = Literal["files", "shards"]

NUMBER_SCHEMA = pa.schema([("number", pa.int64()), ("seed", pa.int64())])
TABLE_SCHEMA = pa.schema(
    [("file", pa.string()), ("caption", pa.string()), *NUMBER_SCHEMA]  # of OUT/pictures.parquet
)


@dataclass(frozen=True)
class Chunk:
    """Pictures that a worker draws and writes together."""

    name: str
    """Of its shard."""
    first: int
    """The number of its first picture."""
    captions: tuple[str, ...]
    small: np.ndarray | None
    """`[n, s, s, 3]` uint8: what a super-resolution stage enlarges."""

    def file_names(self) -> list[str]:
        return [file_name(self.first + i) for i in range(len(self.captions))]


@dataclass(frozen=True)
class PictureSet:
    """What is to be written, and where."""

    output: str
    layout: Layout
    request: Request
    wanted: Wanted
    chunk_size: int
    """Pictures that a worker draws at a time: of a shard."""

    @cached_property
    def stamp(self) -> Stamp:
        """What the set follows from: weights, captions, pictures begun from, settings."""
        request = self.request
        files = [data for data in (request.init_image, request.mask) if data is not None]
        if self.wanted.small is not None:
            files.append(self.wanted.small.tobytes())
        begun_from = [hashlib.sha256(data).hexdigest() for data in files]
        settings = request.about() | {"layout": self.layout, "samples_per_shard": self.chunk_size}
        del settings["run"]  # another name, the same pictures
        return Stamp(
            stage="sample",
            input_digest=digest_of([request.weights, list(self.wanted.captions), begun_from]),
            config_digest=digest_of(settings),
            config=settings,
        )

    @property
    def digest(self) -> str:
        """16 hex digits: the same set, the same digest."""
        return digest_of([self.stamp.input_digest, self.stamp.config_digest])

    def chunks(self) -> list[Chunk]:
        size, small = self.chunk_size, self.wanted.small
        starts = range(0, len(self.wanted.captions), size)
        return [
            Chunk(
                f"{number:05d}",
                at,
                tuple(self.wanted.captions[at : at + size]),
                None if small is None else small[at : at + size],
            )
            for number, at in enumerate(starts)
        ]


def draw_set(pictures: PictureSet, workers: Workers, *, overwrite: bool = False) -> int:
    """Draw what is missing; returns how many pictures that were.

    Raises ConflictError where OUT holds another set, ShortfallError naming chunks that failed.
    """
    _check_own(pictures.output)
    claim(pictures.output, pictures.stamp, overwrite=overwrite)
    chunks = pictures.chunks()
    there = _names_there(pictures)
    missing = [chunk for chunk in chunks if not there >= set(_files_of(pictures.layout, chunk))]
    failed = {}
    for outcome in map_on_workers(
        partial(
            make_painter,
            pictures.request,
            pictures.layout,
            pictures.output,
            pictures.stamp.input_digest,
            num_threads(workers),
        ),
        missing,
        workers=with_gpus(workers, pictures.request.device),
        description="sample",
        unit="pictures",
        size=lambda chunk: len(chunk.captions),
    ):
        if outcome.error is not None:
            failed[outcome.item.name] = outcome.error
    if failed:
        raise ShortfallError(
            f"sample: {len(failed)} of {len(chunks)} chunks failed ({', '.join(sorted(failed))}; "
            f"first error: {failed[min(failed)]}); run the command again to draw only these"
        )
    _finish(pictures, chunks)
    return sum(len(chunk.captions) for chunk in missing)


def make_painter(
    request: Request, layout: Layout, output: str, digest: str, threads: int | None
) -> "Painter":
    if threads is not None:
        torch.set_num_threads(threads)
    return Painter(request, layout, output, digest)


class Painter:
    """Draws a chunk and writes it; made once in each worker."""

    def __init__(self, request: Request, layout: Layout, output: str, digest: str) -> None:
        self._request, self._layout, self._output = request, layout, output
        self._digest = digest
        self._model = load_model(request.run, request.checkpoint, request.device)

    def __call__(self, chunk: Chunk) -> int:
        images = draw(
            self._model, self._request, chunk.captions, first=chunk.first, small=chunk.small
        )
        write = {"files": self._write_files, "shards": self._write_shard}[self._layout]
        write(chunk, [to_picture(image) for image in images])
        return len(images)

    def _write_files(self, chunk: Chunk, pictures: "list[Image]") -> None:
        for name, data in zip(chunk.file_names(), self._pngs(chunk, pictures), strict=True):
            storage.publish_bytes(storage.join(self._output, name), data)

    def _write_shard(self, chunk: Chunk, pictures: "list[Image]") -> None:
        samples, rows = [], []
        for i, data in enumerate(self._pngs(chunk, pictures)):
            row = self._row(f"{chunk.name}{i:04d}", chunk, i, data, pictures[i].size)
            samples.append(Sample(row["key"], row["uid"], row["caption"], data, "png", row))
            rows.append(row)
        table = pa.Table.from_pylist(rows, pa.schema([*ROW_SCHEMA, *NUMBER_SCHEMA]))
        stats = {"count": len(rows), "successes": len(rows)}
        write_shard(self._output, chunk.name, samples, table, stats)

    def _pngs(self, chunk: Chunk, pictures: "list[Image]") -> list[bytes]:
        about = self._request.about()
        return [
            png_bytes(picture, {"caption": caption, "number": chunk.first + i, **about})
            for i, (caption, picture) in enumerate(zip(chunk.captions, pictures, strict=True))
        ]

    def _row(
        self, key: str, chunk: Chunk, place: int, data: bytes, size: tuple[int, int]
    ) -> dict[str, Any]:
        number, caption = chunk.first + place, chunk.captions[place]
        url = f"sample:{self._digest}/{number}"  # a name, no address: there is nothing to fetch
        width, height = size
        return dict.fromkeys(ROW_SCHEMA.names) | {
            "key": key,
            "uid": sample_uid(url, caption),
            "url": url,
            "caption": caption,
            "status": SUCCESS,
            "width": width,
            "height": height,
            "original_width": width,
            "original_height": height,
            "sha256": hashlib.sha256(data).hexdigest(),
            "number": number,
            "seed": self._request.seed,
        }


def file_name(number: int) -> str:
    return f"{number:08d}.png"


def _files_of(layout: Layout, chunk: Chunk) -> list[str]:
    return chunk.file_names() if layout == "files" else shard_files(chunk.name)


def _names_there(pictures: PictureSet) -> set[str]:
    """A file is there whole or not at all; of a shard _stats.json is written last."""
    folder = pictures.output
    return set(
        storage.list_names(folder if pictures.layout == "files" else storage.join(folder, "shards"))
    )


def _finish(pictures: PictureSet, chunks: list[Chunk]) -> None:
    """What says that the set is whole."""
    if pictures.layout == "files":
        rows = [
            {"file": name, "caption": caption, "number": number, "seed": pictures.request.seed}
            for chunk in chunks
            for number, (name, caption) in enumerate(
                zip(chunk.file_names(), chunk.captions, strict=True), chunk.first
            )
        ]
        table = pa.Table.from_pylist(rows, TABLE_SCHEMA)
        storage.publish_table(storage.join(pictures.output, "pictures.parquet"), table)
    elif not storage.exists(manifest_url(pictures.output)):
        write_manifest(pictures.output, _manifest(pictures, chunks))


def _manifest(pictures: PictureSet, chunks: list[Chunk]) -> Manifest:
    return Manifest(
        stage=pictures.stamp.stage,
        config=pictures.stamp.config,
        config_digest=pictures.stamp.config_digest,
        input_digest=pictures.stamp.input_digest,
        shards=[_digested(pictures.output, chunk) for chunk in chunks],
        counts={SUCCESS: len(pictures.wanted.captions)},
    )


def _digested(output: str, chunk: Chunk) -> Shard:
    tar, parquet = (shard_url(output, chunk.name, suffix) for suffix in (".tar", ".parquet"))
    return Shard(
        name=chunk.name,
        num_samples=len(chunk.captions),
        num_bytes=storage.size_bytes(tar),
        sha256=storage.sha256(tar),
        rows_sha256=storage.sha256(parquet),
    )


def _check_own(output: str) -> None:
    """No other corpus, nor anything else, is taken for a set of pictures or mixed with one."""
    names = storage.list_names(output)
    if names and "stamp.json" not in names:
        raise ConflictError(
            f"{output}: not empty and not a set of pictures that `carrara sample` began (it holds "
            f"{names[0]!r}); give another place"
        )
    if "manifest.json" in names and read_manifest(output).stage != "sample":
        raise ConflictError(f"{output}: another corpus; give another place")
