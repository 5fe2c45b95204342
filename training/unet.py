"""The denoiser of DDPM: a U-Net with time embedding, self-attention, and attention to a text.

After Ho et al. 2020, appendix B, with two changes: time and text enter every residual block as a
scale and a shift (Dhariwal & Nichol 2021, section 3, "adaptive group normalization"), and each
attention block also attends to the caption's tokens.

Shapes: as in training/layers.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.errors import ConfigError
from training.config import UNetConfig
from training.layers import (
    Attention,
    Backbone,
    Condition,
    Conditioning,
    ResidualBlock,
    full_precision,
    group_norm,
    zeroed,
)

IMAGE_CHANNELS = 3


class UNet(Backbone):
    """`image_size` is the side of what comes in, which decides where attention stands."""

    def __init__(
        self,
        config: UNetConfig,
        image_size: int,
        text_width: int,
        in_channels: int = IMAGE_CHANNELS,
        out_channels: int = IMAGE_CHANNELS,
    ) -> None:
        super().__init__()
        _check(config, image_size)
        self.patch_size = config.patch_size
        width = 4 * config.channels
        self.conditioning = Conditioning(config.channels, width, text_width)

        channels, resolution = config.channels, image_size // config.patch_size
        self.enter = nn.Conv2d(in_channels * config.patch_size**2, channels, 3, padding=1)
        skips = [channels]
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.channel_mults):
            if level:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                resolution //= 2
                skips.append(channels)
            for _ in range(config.num_res_blocks):
                self.down.append(Block(config, channels, mult * config.channels, resolution, width))
                channels = mult * config.channels
                skips.append(channels)
        self.middle = nn.ModuleList(
            [
                Block(config, channels, channels, resolution, width, attends=True),
                Block(config, channels, channels, resolution, width, attends=False),
            ]
        )
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mults))):
            for _ in range(config.num_res_blocks + 1):
                out = mult * config.channels
                self.up.append(Block(config, channels + skips.pop(), out, resolution, width))
                channels = out
            if level:
                self.up.append(Upsample(channels))
                resolution *= 2
        assert not skips
        patch_channels = out_channels * config.patch_size**2
        self.leave = nn.Sequential(
            group_norm(channels),
            nn.SiLU(),
            zeroed(nn.Conv2d(channels, patch_channels, 3, padding=1)),
        )

    def forward(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        condition = self.conditioning(t, text_tokens, text_mask)
        h = self.enter(F.pixel_unshuffle(x_t, self.patch_size))
        skips = [h]
        for block in self.down:
            h = self.run(block, h, condition) if isinstance(block, Block) else block(h)
            skips.append(h)
        for block in self.middle:
            h = self.run(block, h, condition)
        for block in self.up:
            if isinstance(block, Block):
                h = self.run(block, torch.cat([h, skips.pop()], 1), condition)
            else:
                h = block(h)
        with full_precision(h):
            return F.pixel_shuffle(self.leave(h.float()), self.patch_size)


class Block(nn.Module):
    """A residual block and, at the resolutions that ask for it, an attention block."""

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        resolution: int,
        width: int,
        attends: bool | None = None,
    ) -> None:
        super().__init__()
        if attends is None:
            attends = resolution in config.attention_resolutions
        self.residual = ResidualBlock(in_channels, out_channels, width, config.dropout)
        self.attention = AttentionBlock(out_channels, width, config.num_heads) if attends else None

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        h: Tensor = self.residual(x, condition.embedding)
        return h if self.attention is None else self.attention(h, condition)


class AttentionBlock(nn.Module):
    """The picture's positions attend to each other, then to the text."""

    def __init__(self, channels: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_self, self.norm_text = group_norm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out_self = zeroed(nn.Linear(channels, channels))
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(width, 2 * channels)
        self.out_text = zeroed(nn.Linear(channels, channels))
        self.attention = Attention(num_heads)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        h = x.flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = self.qkv(self.norm_self(x).flatten(2).transpose(1, 2)).chunk(3, dim=2)
        h = h + self.out_self(self.attention(q, k, v))
        q, (k, v) = self.query(self.norm_text(h)), self.key_value(condition.text).chunk(2, dim=2)
        h = h + self.out_text(self.attention(q, k, v, condition.mask))
        out: Tensor = h.transpose(1, 2).reshape(x.shape)
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


def _check(config: UNetConfig, image_size: int) -> None:
    divisor = config.patch_size * 2 ** (len(config.channel_mults) - 1)
    if image_size % divisor:
        raise ConfigError(
            f"image_size is {image_size}: expected a multiple of {divisor}, because unet.patch_size"
            f" is {config.patch_size} and unet.channel_mults has {len(config.channel_mults)} levels"
        )
    for mult in config.channel_mults:
        if mult * config.channels % config.num_heads:
            raise ConfigError(
                f"unet.num_heads is {config.num_heads}: expected a divisor of every level's "
                f"channels, and {mult} x {config.channels} is not a multiple of it"
            )
