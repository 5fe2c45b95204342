"""What the denoisers share: how they read time and text, residual and attention blocks.

Shapes: B pictures, C channels, H x W pixels, N = H * W positions, L text tokens of width W_text,
E the width of the embedding of time and text.
"""

import contextlib
import math
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Layer = TypeVar("Layer", bound=nn.Module)


class Backbone(nn.Module):
    """A denoiser `(x_t [B, C, H, W], t [B], text_tokens, text_mask [B, L]) -> [B, C_out, H, W]`.

    What it puts out is float32, whatever the arithmetic inside.
    """

    checkpoint_activations = False
    """Keep only what enters a block, and compute its inside again on the way back (Chen et al.
    2016, "Training Deep Nets with Sublinear Memory Cost")."""

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            output = block(*inputs)
        return output


class Condition(NamedTuple):
    """Time and text as the blocks see them."""

    embedding: Tensor  # [B, E], of both
    text: Tensor  # [B, 1 + L, E]
    mask: Tensor  # [B, 1 + L] bool


class Conditioning(nn.Module):
    """Time and text, read once for all blocks.

    A learned null token precedes the caption's. It is all that is left to attend to when the
    mask is all False, which is how a dropped caption looks.
    """

    def __init__(self, time_channels: int, width: int, text_width: int) -> None:
        super().__init__()
        self.time_channels = time_channels
        self.time = nn.Sequential(
            nn.Linear(time_channels, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.null_text = nn.Parameter(torch.randn(width) * 0.02)
        self.pooled_text = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, t: Tensor, tokens: Tensor, mask: Tensor) -> Condition:
        null = self.null_text.expand(len(tokens), 1, -1)
        text = torch.cat([null, self.text(tokens).to(null.dtype)], 1)
        mask = F.pad(mask, (1, 0), value=True)
        weights = mask.unsqueeze(-1) / mask.sum(1).view(-1, 1, 1)
        with full_precision(t):  # bfloat16 can't tell neighbouring timesteps apart
            time = self.time(timestep_embedding(t, self.time_channels))
        pooled = self.pooled_text((weights * text).sum(1))
        return Condition(F.silu(time + pooled), text, mask)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; time and text scale and shift the second norm."""

    def __init__(self, in_channels: int, out_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        out: Tensor = self.skip(x) + self.conv2(self.dropout(h))
        return out


class Attention(nn.Module):
    """`(q [B, N, C], k [B, M, C], v [B, M, C], mask [B, M]) -> [B, N, C]`, in heads; no weights."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = None if mask is None else mask[:, None, None, :]
        attend = _by_products if _is_small_on_cpu(q, k) else F.scaled_dot_product_attention
        q, k, v = (in_heads(x, self.num_heads).transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, seen).transpose(1, 2).flatten(2)


SMALL_SCORES = 2**18
"""Products of a query and a key for each head: 512 positions among themselves."""


def _is_small_on_cpu(q: Tensor, k: Tensor) -> bool:
    """Where torch's fused attention loses: in bfloat16 on a CPU, plain products took 0.2 to 0.4 of
    its time, forward and backward (256 and 64 positions, 13 tokens; AVX-512, torch 2.15)."""
    is_half_on_cpu = q.device.type == "cpu" and q.dtype is torch.bfloat16
    return is_half_on_cpu and q.shape[1] * k.shape[1] <= SMALL_SCORES


def _by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """What scaled_dot_product_attention computes, all of the scores at once."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    out: Tensor = scores.softmax(-1) @ v
    return out


class GroupNorm(nn.GroupNorm):
    """torch's, but for bfloat16 on a CPU, where its kernel for channels-last memory took a sixth of
    a whole step: there it is computed in float32 and rounded after."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x.device.type == "cpu" and x.dtype is torch.bfloat16):
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where rounding to bfloat16 would show and float32 costs little."""
    device = like.device.type
    # The device of shapes alone knows no autocast.
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def in_heads(x: Tensor, num_heads: int) -> Tensor:
    """`[B, N, C]` -> `[B, N, heads, C / heads]`."""
    return x.reshape(*x.shape[:2], num_heads, -1)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of t at `width / 2` frequencies from 1 to 1/10000 (Vaswani et al. 2017)."""
    half = width // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, as in the paper, and at least 4 channels in each."""
    return GroupNorm(math.gcd(32, channels // 4), channels)


def zeroed(layer: Layer) -> Layer:
    """With its last layer zero a block starts as the identity, the network as eps = 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
