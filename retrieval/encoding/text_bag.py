"""A small text tower: the pieces of a text, of any script, to a unit vector in another's space.

A bag: the order of the pieces does not count. On names of a few words a transformer of two layers
learned no more from the same texts, and took four times as long.

Shapes: n texts, L pieces, d the width of the shared space. Piece 0 is padding.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


class Architecture(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int
    hidden: int
    """Width of the layer that corrects the sum of the pieces."""
    context_length: int
    """So many pieces of a text are read."""
    embed_dim: int


class TextBag(nn.Module):
    """The direction of the pieces' sum, corrected by one hidden layer."""

    def __init__(self, architecture: Architecture, dropout: float = 0.0) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.pieces = nn.EmbeddingBag(
            architecture.vocab_size, dim, mode="sum", padding_idx=0, sparse=True
        )
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, architecture.hidden)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(architecture.hidden, dim)
        nn.init.normal_(self.pieces.weight, std=0.02)
        nn.init.zeros_(self.down.weight)  # the correction begins as none
        nn.init.zeros_(self.down.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, L] int64 -> [n, d], unit rows."""
        rows = nn.functional.normalize(self.pieces(tokens), dim=-1)
        hidden = self.dropout(nn.functional.gelu(self.up(self.norm(rows))))
        return nn.functional.normalize(rows + self.down(hidden), dim=-1)
