"""The denoiser of DDPM: a U-Net with time embedding, self-attention, and attention to a text.

After Ho et al. 2020, appendix B, with two changes: time and text enter every residual block as a
scale and a shift (Dhariwal & Nichol 2021, section 3, "adaptive group normalization"), and each
attention block also attends to the caption's tokens.

Shapes: B pictures, C channels, H x W pixels, N = H * W, L text tokens of width W_text, E the
width of the embedding of time and text.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.errors import ConfigError
from training.config import UNetConfig

IMAGE_CHANNELS = 3
Layer = TypeVar("Layer", bound=nn.Module)


class UNet(nn.Module):
    """`(x_t [B, 3, H, W], t [B], text_tokens [B, L, W_text], text_mask [B, L]) -> eps`.

    A learned null token precedes the caption's. It is all that is left to attend to when the
    mask is all False, which is how a dropped caption looks.
    """

    def __init__(self, config: UNetConfig, image_size: int, text_width: int) -> None:
        super().__init__()
        _check(config, image_size)
        self.patch_size = config.patch_size
        self.time_channels = config.channels
        width = 4 * config.channels
        self.time = nn.Sequential(
            nn.Linear(config.channels, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.null_text = nn.Parameter(torch.randn(width) * 0.02)
        self.pooled_text = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

        patch_channels = IMAGE_CHANNELS * config.patch_size**2
        channels, resolution = config.channels, image_size // config.patch_size
        self.enter = nn.Conv2d(patch_channels, channels, 3, padding=1)
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
        self.leave = nn.Sequential(
            _norm(channels), nn.SiLU(), _zeroed(nn.Conv2d(channels, patch_channels, 3, padding=1))
        )

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        text, mask = self._text(text_tokens, text_mask)
        weights = mask.unsqueeze(-1) / mask.sum(1).view(-1, 1, 1)
        embedding = self.time(timestep_embedding(t, self.time_channels))
        embedding = F.silu(embedding + self.pooled_text((weights * text).sum(1)))

        h = self.enter(F.pixel_unshuffle(x_t, self.patch_size))
        skips = [h]
        for block in self.down:
            h = block(h, embedding, text, mask) if isinstance(block, Block) else block(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding, text, mask)
        for block in self.up:
            if isinstance(block, Block):
                h = block(torch.cat([h, skips.pop()], 1), embedding, text, mask)
            else:
                h = block(h)
        eps: Tensor = F.pixel_shuffle(self.leave(h).float(), self.patch_size)
        assert eps.shape == x_t.shape
        return eps

    def _text(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The text as the network sees it, `[B, 1 + L, E]`, its mask `[B, 1 + L]`."""
        null = self.null_text.expand(len(tokens), 1, -1)
        seen = torch.cat([null, self.text(tokens).to(null.dtype)], 1)
        return seen, F.pad(mask, (1, 0), value=True)


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

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        h: Tensor = self.residual(x, embedding)
        return h if self.attention is None else self.attention(h, text, mask)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; time and text scale and shift the second norm."""

    def __init__(self, in_channels: int, out_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * out_channels)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        out: Tensor = self.skip(x) + self.conv2(self.dropout(h))
        return out


class AttentionBlock(nn.Module):
    """The picture's positions attend to each other, then to the text."""

    def __init__(self, channels: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_self, self.norm_text = _norm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out_self = _zeroed(nn.Linear(channels, channels))
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(width, 2 * channels)
        self.out_text = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = self.qkv(self.norm_self(x).flatten(2).transpose(1, 2)).chunk(3, dim=2)
        h = h + self.out_self(self._attend(q, k, v, None))
        q, (k, v) = self.query(self.norm_text(h)), self.key_value(text).chunk(2, dim=2)
        h = h + self.out_text(self._attend(q, k, v, mask[:, None, None, :]))
        out: Tensor = h.transpose(1, 2).reshape(x.shape)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of t at `width / 2` frequencies from 1 to 1/10000 (Vaswani et al. 2017)."""
    half = width // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], 1)


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


def _norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, as in the paper, and at least 4 channels in each."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def _zeroed(layer: Layer) -> Layer:
    """With its last layer zero a block starts as the identity, the network as eps = 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
