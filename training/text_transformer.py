"""A small text transformer that is trained along with the denoiser, in place of a frozen tower.

Shapes: B captions of L tokens, W the transformer's width.
"""

import torch
from torch import Tensor, nn

from infra.errors import ConfigError
from training.config import TextConfig
from training.layers import Attention, Backbone

VOCABULARY_SIZE = 49408
"""Of open_clip's tokenizer."""


class TextTransformer(nn.Module):
    """`(ids [B, L], mask [B, L]) -> [B, L, W]`: every token sees all tokens of its caption."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        if config.width % config.num_heads:
            raise ConfigError(
                f"text.width is {config.width}: expected a multiple of text.num_heads, "
                f"{config.num_heads}"
            )
        self.tokens = nn.Embedding(VOCABULARY_SIZE, config.width)
        self.positions = nn.Parameter(torch.randn(config.context_length, config.width) * 0.01)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.num_layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.tokens(ids) + self.positions[: ids.shape[1]]
        # What follows the end, and a caption that was dropped, would see nothing: the first token
        # is always there.
        seen = mask.clone()
        seen[:, 0] = True
        for layer in self.layers:
            h = layer(h, seen)
        out: Tensor = h
        return out


class TextLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )
        self.attention = Attention(config.num_heads)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        h = h + self.out(self.attention(*self.qkv(self.norm1(h)).chunk(3, dim=2), mask))
        out: Tensor = h + self.mlp(self.norm2(h))
        return out


class ReadingNetwork(Backbone):
    """A denoiser with its own reader: the text comes as ids of tokens, `[B, L]`."""

    def __init__(self, reader: TextTransformer, denoiser: Backbone) -> None:
        super().__init__()
        self.reader, self.denoiser = reader, denoiser

    def forward(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        tokens = self.reader(text_tokens, text_mask)
        output: Tensor = self.denoiser(x_t, t, tokens, text_mask)
        return output
