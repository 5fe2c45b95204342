"""Captions as the network takes them: embeddings of a frozen open_clip text tower, or the ids of
tokens, where a text transformer is trained along with the network.

Shapes: n captions, L tokens of the longest of them, W the tower's width.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import open_clip
import torch
from torch import Tensor

from training.config import Config

if TYPE_CHECKING:
    from retrieval.encoding.encoder import Encoder

REMEMBERED_AT_ONCE = 256
"""Captions in the tower."""


class Captions(Protocol):
    """`encode(captions) -> (tokens [n, L, W] float32 or ids [n, L] int64, mask [n, L] bool)`."""

    @property
    def width(self) -> int:
        """W of what the denoiser sees."""
        ...

    def remember(self, captions: Sequence[str]) -> None:
        """Read these once and for all."""
        ...

    def encode(self, captions: Sequence[str], at_once: int | None = None) -> tuple[Tensor, Tensor]:
        """The frozen tower is given `at_once` at most, None: all that it has to read."""
        ...


def make_captions(config: Config, device: torch.device) -> Captions:
    if config.text.trained:
        return CaptionTokens(config.text.width, config.text.context_length, device)
    from retrieval.encoding.encoder import load_encoder

    return CaptionEncoder(load_encoder(config.encoder, str(device)), device)


class CaptionEncoder:
    """Token embeddings of a frozen tower.

    Captions named beforehand (`remember`) are encoded once. Others are encoded when they come and
    not kept: what a caption's embedding is, to the last bit, may depend on the captions beside it
    in the tower's batch, so a memory filled on the way would make a resumed run differ.
    """

    def __init__(self, encoder: "Encoder", device: torch.device) -> None:
        self.width = encoder.token_width
        self._encoder = encoder
        self._device = device
        self._places: dict[str, tuple[int, int]] = {}
        """Where in the memory a caption's tokens are: the first of them, and their number."""
        self._memory = torch.empty(0, self.width, dtype=torch.float16, device=device)

    def remember(self, captions: Sequence[str]) -> None:
        """Without padding, in float16: a caption of ten tokens of width 512 takes 10 kB."""
        new = [c for c in dict.fromkeys(captions) if c not in self._places]
        rows = self._rows(new, REMEMBERED_AT_ONCE)
        self._places |= _places(new, rows, first=len(self._memory))
        self._memory = torch.cat([self._memory, *rows])

    def encode(self, captions: Sequence[str], at_once: int | None = None) -> tuple[Tensor, Tensor]:
        memory, places = self._memory, self._places
        if unknown := [c for c in dict.fromkeys(captions) if c not in places]:
            rows = self._rows(unknown, at_once or len(unknown))
            places = places | _places(unknown, rows, first=len(memory))
            memory = torch.cat([memory, *rows])
        # One look-up for the whole batch: a GPU would wait for a row at a time.
        starts, lengths = torch.tensor([places[c] for c in captions]).unbind(1)
        columns = torch.arange(int(lengths.max()))
        mask = columns < lengths[:, None]
        index = torch.where(mask, starts[:, None] + columns, 0).to(self._device, non_blocking=True)
        mask = mask.to(self._device, non_blocking=True)
        return memory[index].float() * mask[..., None], mask

    def _rows(self, captions: Sequence[str], at_once: int) -> list[Tensor]:
        """Each caption's own tokens `[its L, W]`."""
        starts = range(0, len(captions), at_once)
        return [row for start in starts for row in self._read(captions[start : start + at_once])]

    @torch.no_grad()
    def _read(self, captions: Sequence[str]) -> list[Tensor]:
        """All at once, in float16 to halve the memory they take."""
        tokens, mask = self._encoder.token_embeddings(list(captions))
        tokens, mask = tokens.half().to(self._device), mask.to(self._device)
        return [row[kept] for row, kept in zip(tokens, mask, strict=True)]


def _places(
    captions: Sequence[str], rows: Sequence[Tensor], first: int
) -> dict[str, tuple[int, int]]:
    """Where each caption's rows will lie, one caption after the other."""
    ends = list(itertools.accumulate((len(row) for row in rows), initial=first))
    return {
        caption: (start, len(row))
        for caption, start, row in zip(captions, ends, rows, strict=False)
    }


class CaptionTokens:
    """Ids of open_clip's own byte-pair tokens, for `TextTransformer`."""

    def __init__(self, width: int, context_length: int, device: torch.device) -> None:
        self.width = width
        self._tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=context_length)
        self._device = device

    def remember(self, captions: Sequence[str]) -> None:
        """Nothing: the tokenizer is quick."""

    def encode(self, captions: Sequence[str], at_once: int | None = None) -> tuple[Tensor, Tensor]:
        del at_once  # there is no tower
        ids = self._tokenizer(list(captions))
        ends = (ids == self._tokenizer.eot_token_id).int().argmax(dim=1, keepdim=True)
        mask = torch.arange(int(ends.max()) + 1) <= ends
        return ids[:, : mask.shape[1]].to(self._device), mask.to(self._device)
