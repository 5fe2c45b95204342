"""A small text tower: word pieces of any script -> unit vectors in the space of another encoder.

Shapes: n texts, L tokens, w the width, d the width of the shared space. Token 0 is padding.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


class Architecture(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int
    width: int
    layers: int
    heads: int
    context_length: int
    embed_dim: int


class TextTransformer(nn.Module):
    """Pre-norm encoder; the mean of the tokens' last states, projected. `dropout` is of what the
    tokens are embedded to, in training."""

    def __init__(self, architecture: Architecture, dropout: float = 0.0) -> None:
        super().__init__()
        width = architecture.width
        self.token_embedding = nn.Embedding(architecture.vocab_size, width, padding_idx=0)
        self.positional_embedding = nn.Parameter(torch.zeros(architecture.context_length, width))
        layer = nn.TransformerEncoderLayer(
            width,
            architecture.heads,
            dim_feedforward=4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # Nested tensors would need the post-norm form.
        self.encoder = nn.TransformerEncoder(layer, architecture.layers, enable_nested_tensor=False)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, architecture.embed_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, L] int64 -> [n, d], unit rows."""
        is_padding = tokens == 0
        states = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        states = self.encoder(self.dropout(states), src_key_padding_mask=is_padding)
        weights = (~is_padding).unsqueeze(-1).to(states.dtype)  # [n, L, 1]
        pooled = (self.ln_final(states) * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(self.text_projection(pooled), dim=-1)
