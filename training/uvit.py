"""A denoiser that spends its work in a transformer at low resolution, between convolutions.

After Hoogeboom et al. 2023, "simple diffusion", section 3.3 (U-ViT): space to depth at the door,
residual blocks at the higher resolutions, a transformer at the lowest, and a mirrored decoder
with skips. Its layers are DiT's (Peebles & Xie 2023, section 3.2): time and text scale, shift and
gate them, the gates zero at first (adaLN-zero); each also attends to the caption's tokens.
Queries and keys are normalised (Dehghani et al. 2023, section 2), without which attention in
bfloat16 may diverge.

Shapes: as in training/layers.py; W is the transformer's width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.errors import ConfigError
from training.config import UViTConfig
from training.layers import (
    Attention,
    Backbone,
    Condition,
    Conditioning,
    ResidualBlock,
    full_precision,
    group_norm,
    in_heads,
    timestep_embedding,
    zeroed,
)

MLP_RATIO = 4
TIME_CHANNELS = 256
"""Sinusoids of the timestep, as in DiT."""


class UViT(Backbone):
    """`image_size` is the side of what comes in, for a check alone: any multiple will do."""

    def __init__(
        self,
        config: UViTConfig,
        image_size: int,
        text_width: int,
        in_channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        _check(config, image_size)
        self.patch_size = config.patch_size
        width, num_blocks = config.width, config.num_res_blocks
        self.conditioning = Conditioning(TIME_CHANNELS, width, text_width)
        first = config.channels[0]
        self.enter = nn.Conv2d(in_channels * config.patch_size**2, first, 3, padding=1)

        def residual(from_channels: int, channels: int) -> ResidualBlock:
            return ResidualBlock(from_channels, channels, width, config.dropout)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        levels = list(zip(config.channels, (*config.channels[1:], width), strict=True))
        for channels, below in levels:
            self.down.extend(residual(channels, channels) for _ in range(num_blocks))
            self.down.append(nn.Conv2d(channels, below, 2, stride=2))
        for channels, below in reversed(levels):
            self.up.append(Grow(below, channels))
            self.up.extend(residual(2 * channels, channels) for _ in range(num_blocks))
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.leave = nn.Sequential(
            group_norm(first),
            nn.SiLU(),
            zeroed(nn.Conv2d(first, out_channels * config.patch_size**2, 3, padding=1)),
        )

    def forward(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        condition = self.conditioning(t, text_tokens, text_mask)
        h = self.enter(F.pixel_unshuffle(x_t, self.patch_size))
        skips = []
        for block in self.down:
            if isinstance(block, ResidualBlock):
                h = self.run(block, h, condition.embedding)
                skips.append(h)
            else:
                h = block(h)
        h = self._transformed(h, condition)
        for block in self.up:
            if isinstance(block, ResidualBlock):
                h = self.run(block, torch.cat([h, skips.pop()], 1), condition.embedding)
            else:
                h = block(h)
        with full_precision(h):
            return F.pixel_shuffle(self.leave(h.float()), self.patch_size)

    def _transformed(self, x: Tensor, condition: Condition) -> Tensor:
        h = x.flatten(2).transpose(1, 2)  # [B, N, W]
        h = h + position_embedding(x.shape[2], x.shape[3], x.shape[1], x.device).to(x.dtype)
        for layer in self.layers:
            h = self.run(layer, h, condition)
        return x + h.transpose(1, 2).reshape(x.shape)


class TransformerLayer(nn.Module):
    """Self-attention, attention to the text, and an MLP."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        width, head_width = config.width, config.head_width
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.norm_self = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out_self = nn.Linear(width, width)
        self.norm_text = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out_text = zeroed(nn.Linear(width, width))
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(config.dropout),
            nn.Linear(MLP_RATIO * width, width),
        )
        self.attention = Attention(width // head_width)

    def forward(self, h: Tensor, condition: Condition) -> Tensor:
        modulation = self.modulation(condition.embedding)[:, None].chunk(6, dim=2)
        scale_self, shift_self, gate_self, scale_mlp, shift_mlp, gate_mlp = modulation
        q, k, v = self.qkv(_modulated(self.norm_self(h), scale_self, shift_self)).chunk(3, dim=2)
        q, k = self._of_unit_scale(q), self._of_unit_scale(k)
        h = h + gate_self * self.out_self(self.attention(q, k, v))
        q, (k, v) = self.query(self.norm_text(h)), self.key_value(condition.text).chunk(2, dim=2)
        h = h + self.out_text(self.attention(q, k, v, condition.mask))
        out: Tensor = h + gate_mlp * self.mlp(_modulated(self.norm_mlp(h), scale_mlp, shift_mlp))
        return out

    def _of_unit_scale(self, x: Tensor) -> Tensor:
        heads = in_heads(x, self.attention.num_heads)
        return F.rms_norm(heads, heads.shape[-1:]).to(x.dtype).flatten(2)


class Grow(nn.Module):
    """Twice the resolution: every position becomes four."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def position_embedding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sinusoids of row and column `[height * width, channels]`, for any size of picture."""
    rows = timestep_embedding(torch.arange(height, device=device), channels // 2)
    columns = timestep_embedding(torch.arange(width, device=device), channels // 2)
    grid = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return torch.cat(grid, 2).flatten(0, 1)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


def _check(config: UViTConfig, image_size: int) -> None:
    divisor = config.patch_size * 2 ** len(config.channels)
    if image_size % divisor:
        raise ConfigError(
            f"image_size is {image_size}: expected a multiple of {divisor}, because uvit.patch_size"
            f" is {config.patch_size} and uvit.channels has {len(config.channels)} levels"
        )
    if config.width % config.head_width:
        raise ConfigError(
            f"uvit.width is {config.width}: expected a multiple of uvit.head_width, "
            f"{config.head_width}"
        )
