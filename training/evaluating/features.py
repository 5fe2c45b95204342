"""Features of pictures and captions, by several extractors in one pass, spread over workers.

They come back to the driver, which compares them: 2 kB a picture and 512 features, so that a
hundred thousand pictures take 200 MB.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from infra.cluster import Workers, map_on_workers
from infra.errors import ShortfallError
from training.drawing.gpus import num_threads, with_gpus
from training.drawing.pictures import Chunk, read_pictures
from training.evaluating.extractors import load_extractor


@dataclass(frozen=True)
class Features:
    """Of n pictures, by one extractor; d features."""

    images: Tensor
    """`[n, d]` float32."""
    texts: Tensor | None
    """`[n, d]` float32 of their captions; None where there are none or they have no place."""
    captions: tuple[str | None, ...]
    names: tuple[str, ...]

    def take(self, names: Sequence[str]) -> "Features":
        """These pictures, in this order."""
        place = {name: i for i, name in enumerate(self.names)}
        rows = [place[name] for name in names]
        return Features(
            images=self.images[rows],
            texts=None if self.texts is None else self.texts[rows],
            captions=tuple(self.captions[row] for row in rows),
            names=tuple(names),
        )


@dataclass(frozen=True)
class _Part:
    """What a worker sends back: its pictures' names and captions, and a pair an extractor."""

    names: tuple[str, ...]
    captions: tuple[str | None, ...]
    rows: list[tuple[np.ndarray, np.ndarray | None]]


def extract(
    chunks: Sequence[Chunk],
    extractors: Sequence[str],
    size: int | None,
    *,
    device: str,
    workers: Workers,
    description: str,
) -> dict[str, Features]:
    """By extractor, pictures in the order of the chunks; raises ShortfallError."""
    parts: dict[Chunk, _Part] = {}
    for outcome in map_on_workers(
        partial(make_worker, tuple(extractors), size, device, num_threads(workers)),
        chunks,
        workers=with_gpus(workers, device),
        description=description,
        unit="pictures",
        size=lambda chunk: len(chunk.names),
    ):
        if outcome.result is None:
            raise ShortfallError(f"{description}: {outcome.error}")
        parts[outcome.item] = outcome.result
    ordered = [parts[chunk] for chunk in chunks]
    return {name: _joined(ordered, i) for i, name in enumerate(extractors)}


def make_worker(
    extractors: tuple[str, ...], size: int | None, device: str, threads: int | None
) -> Callable[[Chunk], _Part]:
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = [load_extractor(name, device) for name in extractors]

    def look(chunk: Chunk) -> _Part:
        pictures = list(read_pictures(chunk, size))
        images = [picture.image for picture in pictures]
        captions = tuple(picture.caption for picture in pictures)
        words = [caption for caption in captions if caption is not None]
        has_words = len(words) == len(captions)
        rows = [(one.images(images), one.texts(words) if has_words else None) for one in loaded]
        return _Part(tuple(picture.name for picture in pictures), captions, rows)

    return look


def _joined(parts: Sequence[_Part], place: int) -> Features:
    texts = [part.rows[place][1] for part in parts]
    there = [rows for rows in texts if rows is not None]
    return Features(
        images=torch.from_numpy(np.concatenate([part.rows[place][0] for part in parts])),
        texts=torch.from_numpy(np.concatenate(there)) if len(there) == len(texts) else None,
        captions=tuple(caption for part in parts for caption in part.captions),
        names=tuple(name for part in parts for name in part.names),
    )
