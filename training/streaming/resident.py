"""A small corpus whole on the device that trains: decoded once, from there on a step picks from it.

Reads   every sample that the run was given, once
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from infra.errors import ConfigError
from training.streaming.catalogue import Catalogue
from training.streaming.pixels import decode_sample
from training.streaming.plan import Place
from training.streaming.reading import BlockReader, Stored, ranges_of
from training.streaming.shapes import Shape

MAX_SHARE = 0.5
"""Of the device's free memory."""


def check_squares_alone(shapes: tuple[Shape, ...], crop: str) -> None:
    """Raises ConfigError where pictures have shapes of their own, or another part of them is taken
    every time: one square of each is kept."""
    for setting, is_at_odds in (
        ("data.max_aspect_ratio above 1", len(shapes) > 1),
        (f"data.crop = {crop}", crop != "centre"),
    ):
        if is_at_odds:
            raise ConfigError(
                f"loading.on_device with {setting}: it keeps each picture's middle square; leave "
                "one of them at its default"
            )


class ResidentSamples:
    """Pixels, uids and captions of all samples of one shape."""

    def __init__(
        self,
        catalogues: Sequence[Catalogue],
        reader: BlockReader,
        shapes: tuple[Shape, ...],
        device: str,
        num_threads: int,
    ) -> None:
        assert len(shapes) == 1
        parts = list(_parts(catalogues))
        num = sum(len(rows) for _, _, rows in parts)
        height, width = shapes[0]
        _check_room(num * height * width * 3, device)
        pixels = np.empty((num, height, width, 3), np.uint8)
        self._numbers: dict[Place, int] = {}
        self.uids: list[str] = []
        self.captions: list[str] = []
        with ThreadPoolExecutor(num_threads) as pool:
            for (corpus, shard, rows), stored in zip(
                parts, pool.map(lambda part: reader.read_rows(*part), parts), strict=True
            ):
                list(pool.map(_decode, stored, pixels[len(self.uids) :]))
                for row, one in zip(rows, stored, strict=True):
                    self._numbers[corpus, shard, row] = len(self.uids)
                    self.uids.append(one.uid)
                    self.captions.append(one.caption)
        self._pixels = torch.from_numpy(pixels).to(device)

    def numbers_of(self, places: Sequence[Place]) -> list[int]:
        return [self._numbers[place] for place in places]

    def pixels(self, numbers: list[int], flips: list[bool]) -> Tensor:
        """uint8 [b, H, W, 3]"""
        device = self._pixels.device
        chosen = self._pixels.index_select(0, torch.tensor(numbers).to(device, non_blocking=True))
        mirrored = torch.tensor(flips).to(device, non_blocking=True)[:, None, None, None]
        return torch.where(mirrored, chosen.flip(2), chosen)


def _decode(stored: Stored, pixels: np.ndarray) -> None:
    decode_sample(pixels, stored.uid, stored.image)


def _parts(catalogues: Sequence[Catalogue]) -> Iterator[tuple[int, int, list[int]]]:
    for corpus, catalogue in enumerate(catalogues):
        for shard in range(len(catalogue.manifest.shards)):
            table = catalogue.table(shard)
            wanted = np.flatnonzero(~table.is_gone).tolist()
            for part in ranges_of(corpus, shard, table, wanted):
                yield corpus, shard, part.rows


def _check_room(num_bytes: int, device: str) -> None:
    if device.startswith("cuda"):
        room = MAX_SHARE * torch.cuda.mem_get_info(device)[0]
        if num_bytes > room:
            raise ConfigError(
                f"loading.on_device: the corpus takes {num_bytes / 1e6:,.0f} MB decoded; expected "
                f"at most {room / 1e6:,.0f} MB, half of what is free on {device}; leave it off"
            )
