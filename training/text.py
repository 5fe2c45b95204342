"""Captions as the denoiser sees them: token embeddings of a frozen open_clip text tower.

Shapes: n captions, L tokens of the longest of them, W the tower's width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from retrieval.encoding.encoder import Encoder

CHUNK = 256


class CaptionEncoder:
    """`encode(captions) -> (tokens [n, L, W] float32, mask [n, L] bool)`.

    Captions named beforehand (`remember`) are encoded once. Others are encoded when they come and
    not kept: what a caption's embedding is, to the last bit, may depend on the captions beside it
    in the tower's batch, so a memory filled on the way would make a resumed run differ.
    """

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
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
