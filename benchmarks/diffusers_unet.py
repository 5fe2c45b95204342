"""diffusers' own training of its UNet2DConditionModel, for benchmarks to run beside ours.

A step is that of diffusers' examples/text_to_image/train_text_to_image.py, with its defaults:
add_noise, the network, mean squared error in eps, clipping, AdamW, EMAModel. What is quicker than
there is given to it: fused AdamW, the average over all weights at once (foreach), pictures and
captions from our stream. Its schedule of noise is ours, for losses compare under one alone.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.optimization import get_constant_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.config import Config
from training.streaming.batch import Batch
from training.text import Captions

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-2
CLIP_NORM = 1.0
WARMUP_STEPS = 500
"""All four: the example's defaults, as are AdamW's betas and EMAModel's decay."""


@dataclass(frozen=True)
class Settings:
    bfloat16: bool
    channels_last: bool
    compiled: bool
    plain_attention: bool = False
    """Products one by one (diffusers' AttnProcessor), not torch's fused attention."""

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        arithmetic = "bfloat16" if self.bfloat16 else "float32"
        compiled = "compiled" if self.compiled else "not compiled"
        attention = ", plain attention" if self.plain_attention else ""
        return f"{arithmetic}, {layout}, {compiled}{attention}"


class DiffusersTrainer:
    def __init__(
        self,
        config: Config,
        channels: tuple[int, ...],
        captions: Captions,
        settings: Settings,
        device: torch.device,
    ) -> None:
        self._config, self._captions = config, captions
        self._settings, self._device = settings, device
        torch.manual_seed(config.seed)
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.model = make_unet(config, channels, captions.width)
        self.model.to(device, memory_format=layout)
        if settings.plain_attention:
            self.model.set_attn_processor(AttnProcessor())
        self._layout = layout
        self._network = torch.compile(self.model) if settings.compiled else self.model
        self._noise: Any = DDPMScheduler(  # type: ignore[no-untyped-call]  # it has no types
            config.num_timesteps, beta_schedule="squaredcos_cap_v2"
        )
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self._warmup = get_constant_schedule_with_warmup(self._optimizer, WARMUP_STEPS)
        self._ema = EMAModel(self.model.parameters(), foreach=True)

    def train_step(self, batch: Batch) -> Tensor:
        x_0 = batch.pixels.to(self._device, non_blocking=True).float() / 127.5 - 1
        tokens, mask = self._captions.encode(batch.captions)
        eps = torch.randn_like(x_0)
        t = torch.randint(self._config.num_timesteps, (len(x_0),), device=self._device)
        x_t = self._noise.add_noise(x_0, eps, t).contiguous(memory_format=self._layout)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.bfloat16):
            output = self._network(
                x_t, t, encoder_hidden_states=tokens, encoder_attention_mask=mask
            ).sample
        loss = F.mse_loss(output.float(), eps)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self._optimizer.step()
        self._warmup.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._ema.step(self.model.parameters())
        return loss.detach()

    def averaged(self) -> nn.Module:
        """A copy of the network with the averaged weights, to be looked at."""
        network: nn.Module = copy.deepcopy(self.model).eval()
        self._ema.copy_to(network.parameters())
        return network


def make_unet(config: Config, channels: tuple[int, ...], text_width: int) -> Any:
    """With attention where ours has it."""
    shape = config.unet
    sides = [config.image_size >> level for level in range(len(channels))]
    attends = [side in shape.attention_resolutions for side in sides]
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]  # it has no types
        sample_size=config.image_size,
        in_channels=3,
        out_channels=3,
        block_out_channels=channels,
        layers_per_block=shape.num_res_blocks,
        cross_attention_dim=text_width,
        attention_head_dim=shape.num_heads,  # which, by that name, is their number
        norm_num_groups=math.gcd(32, *channels),
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
    )


def channels_of_equal_flops(
    config: Config, text_width: int, num_text_tokens: int, forward_flops: int
) -> tuple[tuple[int, ...], int]:
    """Channels of every level for which a forward pass costs nearest to these FLOPs, and those."""

    def cost(network: Any) -> int:
        return forward_flops_of(network, config.image_size, text_width, num_text_tokens)

    return _channels_of_equal(cost, forward_flops, config, text_width)


def channels_of_equal_parameters(
    config: Config, text_width: int, num_parameters: int
) -> tuple[tuple[int, ...], int]:
    """Channels of every level with which it has nearest to so many parameters, and how many."""
    return _channels_of_equal(num_parameters_of, num_parameters, config, text_width)


def _channels_of_equal(
    cost: Callable[[Any], int], wanted: int, config: Config, text_width: int
) -> tuple[tuple[int, ...], int]:
    """The highest level has as many as ours or half, the next twice those; the others are searched
    in multiples of 32, diffusers' own number of groups in a norm (of 8, for networks of a try)."""
    ours = config.unet.channels
    unit = 32 if ours % 64 == 0 else 8
    found: list[tuple[int, tuple[int, ...], int]] = []
    num_lower = len(config.unet.channel_mults) - 2
    for first in (ours, ours // 2):
        lower = range(2 * first, 6 * first + 1, unit)
        for rest in itertools.combinations_with_replacement(lower, num_lower):
            channels = (first, 2 * first, *rest)
            if any(c % config.unet.num_heads for c in channels):
                continue
            with torch.device("meta"):
                network = make_unet(config, channels, text_width)
            cost_of_it = cost(network)
            found.append((abs(cost_of_it - wanted), channels, cost_of_it))
            if abs(cost_of_it / wanted - 1) < 0.005:
                return channels, cost_of_it
    _, best, cost_of_best = min(found)
    return best, cost_of_best


def num_parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def forward_flops_of(network: Any, image_size: int, text_width: int, num_text_tokens: int) -> int:
    x_t = torch.empty(1, 3, image_size, image_size, device="meta")
    t = torch.zeros(1, device="meta")
    tokens = torch.empty(1, num_text_tokens, text_width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x_t, t, encoder_hidden_states=tokens)
    return int(counter.get_total_flops())
