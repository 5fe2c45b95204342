"""The random numbers of a step: drawn for the whole batch, whoever takes which part of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import Config
from training.order import Purpose, random


@dataclass(frozen=True)
class Draws:
    """One row a sample."""

    t: Tensor  # [B] uniform in 0..T-1
    eps: Tensor  # [B, C, H, W] standard normal
    drops_caption: Tensor  # [B] bool

    def part(self, positions: range) -> "Draws":
        """Where that is not all, in memory of its own: the whole noise is then let go of."""
        if len(positions) == len(self.t):
            return self
        rows = slice(positions.start, positions.stop)
        return Draws(self.t[rows].clone(), self.eps[rows].clone(), self.drops_caption[rows].clone())


def draw(config: Config, step: int, shape: torch.Size, device: torch.device) -> Draws:
    """For the whole batch, from (seed, step) alone: a part of it would depend on who draws.

    torch's generators can't begin in the middle: on a GPU which number a place gets follows from
    the size of all that is drawn. So every worker draws the noise of all of the batch (256 px, 2048
    pictures: 1.6 GB) for the length of this call.
    """
    generator = torch.Generator(device).manual_seed(seed_of(config, Purpose.NOISE, step))
    num = config.batch_size
    t = torch.randint(config.num_timesteps, (num,), generator=generator, device=device)
    drops = torch.rand(num, generator=generator, device=device) < config.caption_dropout
    eps = torch.randn(num, *shape, generator=generator, device=device)
    return Draws(t, eps, drops)


def seed_of(config: Config, purpose: Purpose, *counters: int) -> int:
    """For torch's generators."""
    return int(random(config.seed, purpose, *counters).integers(2**62))
