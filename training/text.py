"""Captions as the network takes them: embeddings of a frozen open_clip text tower, or the ids of
tokens, where a text transformer is trained along with the network.

Shapes: n captions, L tokens of the longest of them, W the tower's width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import open_clip
import torch
from torch import Tensor

from training.config import Config

if TYPE_CHECKING:
    from retrieval.encoding.encoder import Encoder

CHUNK = 256


class Captions(Protocol):
    """`encode(captions) -> (tokens [n, L, W] float32 or ids [n, L] int64, mask [n, L] bool)`."""

    @property
    def width(self) -> int:
        """W of what the denoiser sees."""
        ...

    def remember(self, captions: Sequence[str]) -> None:
        """Read these once and for all."""
        ...

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]: ...


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
        self._memory: dict[str, Tensor] = {}

    def remember(self, captions: Sequence[str]) -> None:
        for start in range(0, len(captions), CHUNK):
            chunk = captions[start : start + CHUNK]
            self._memory.update(zip(chunk, self._rows(chunk), strict=True))

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        unknown = list(dict.fromkeys(c for c in captions if c not in self._memory))
        fresh = dict(zip(unknown, self._rows(unknown), strict=True)) if unknown else {}
        rows = [fresh[c] if c in fresh else self._memory[c] for c in captions]
        tokens = torch.nn.utils.rnn.pad_sequence([row.float() for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return tokens, mask

    @torch.no_grad()
    def _rows(self, captions: Sequence[str]) -> list[Tensor]:
        """Each caption's own tokens `[its L, W]`, in float16 to halve the memory they take."""
        tokens, mask = self._encoder.token_embeddings(list(captions))
        tokens, mask = tokens.half().to(self._device), mask.to(self._device)
        return [row[kept] for row, kept in zip(tokens, mask, strict=True)]


class CaptionTokens:
    """Ids of open_clip's own byte-pair tokens, for `TextTransformer`."""

    def __init__(self, width: int, context_length: int, device: torch.device) -> None:
        self.width = width
        self._tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=context_length)
        self._device = device

    def remember(self, captions: Sequence[str]) -> None:
        """Nothing: the tokenizer is quick."""

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = self._tokenizer(list(captions))
        ends = (ids == self._tokenizer.eot_token_id).int().argmax(dim=1, keepdim=True)
        mask = torch.arange(int(ends.max()) + 1) <= ends
        return ids[:, : mask.shape[1]].to(self._device), mask.to(self._device)
