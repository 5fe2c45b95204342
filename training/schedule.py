"""The noise schedules of the forward process, tabulated in float64.

Symbols are those of Ho et al. 2020 (DDPM), but tables are 0-indexed: row `t` here is the
paper's step `t + 1`, so `t` runs over 0..T-1 and row 0 is the least noisy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from infra.errors import ConfigError

Spacing = Literal["t", "log-snr", "angle"]

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the cosine schedule's end finite
MIN_LINEAR_STEPS = 20  # 1000 times the last of `linear`'s betas: with so few it is 1
MAX_SIGMA = 80.0  # Karras et al. 2022, table 1: more noise than this can't be told from noise alone


def linear(num_timesteps: int) -> Tensor:
    """Ho et al. 2020, section 4: 1e-4 to 0.02 over 1000 steps, rescaled for other lengths."""
    scale = 1000 / num_timesteps
    return torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)


def cosine(num_timesteps: int) -> Tensor:
    """Nichol & Dhariwal 2021, equation 17, with s = 0.008."""
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alphas_cumprod = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)


def with_zero_terminal_snr(betas: Tensor) -> Tensor:
    """The betas whose last step leaves nothing of the picture (Lin et al. 2024, Algorithm 1):
    sqrt(alphas_cumprod) is shifted to end at 0 and scaled to begin where it did."""
    signal = (1 - betas).cumprod(0).sqrt()
    if len(betas) == 1:
        return torch.ones_like(betas)
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alphas_cumprod = signal.square()
    previous = torch.cat([signal.new_ones(1), alphas_cumprod[:-1]])
    return 1 - alphas_cumprod / previous


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"linear": linear, "cosine": cosine}


@dataclass(frozen=True)
class Schedule:
    """Every table a loss or a sampler needs: float64 `[T]`, on the CPU.

    float64, because `1 - alphas_cumprod` at small t is a difference of nearly equal numbers:
    it loses half its digits in float32 and is exactly 0 in bfloat16.
    """

    betas: Tensor
    alphas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor  # alphas_cumprod one step earlier; 1 before the first
    posterior_variance: Tensor  # beta-tilde, DDPM equation 7; 0 at the last step of sampling

    @classmethod
    def from_betas(cls, betas: Tensor) -> "Schedule":
        betas = betas.to(torch.float64)
        alphas = 1 - betas
        alphas_cumprod = alphas.cumprod(0)
        previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        posterior_variance = (1 - previous) / (1 - alphas_cumprod) * betas
        return cls(betas, alphas, alphas_cumprod, previous, posterior_variance)

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    @property
    def log_snr(self) -> Tensor:
        """log sqrt(alphas_cumprod / (1 - alphas_cumprod)), "lambda" of Lu et al. 2022."""
        return (self.alphas_cumprod.log() - (1 - self.alphas_cumprod).log()) / 2

    @property
    def angle(self) -> Tensor:
        """phi in x_t = cos(phi) x_0 + sin(phi) eps (Salimans & Ho 2022, appendix D)."""
        return torch.atan2((1 - self.alphas_cumprod).sqrt(), self.alphas_cumprod.sqrt())

    def until(self, num_timesteps: int) -> "Schedule":
        """The least noisy timesteps alone."""
        assert 1 <= num_timesteps <= self.num_timesteps
        return Schedule.from_betas(self.betas[:num_timesteps])

    def subsequence(self, num_steps: int, spacing: Spacing = "t") -> "tuple[Schedule, list[int]]":
        """The schedule that visits only `num_steps` timesteps, and which they are: the first, the
        last, and between them those nearest to even spacing in t, log-SNR or angle.

        The betas are those that keep alphas_cumprod at the visited timesteps
        (Nichol & Dhariwal 2021, section 4, equation 19).
        """
        if not 1 <= num_steps <= self.num_timesteps:
            raise ConfigError(
                f"num_steps is {num_steps}: expected 1 to {self.num_timesteps}, "
                "the number of timesteps of the schedule"
            )
        visited = torch.from_numpy(self._visited(num_steps, spacing))
        kept = self.alphas_cumprod[visited]
        previous = torch.cat([kept.new_ones(1), kept[:-1]])
        return Schedule.from_betas(1 - kept / previous), visited.tolist()

    def _visited(self, num_steps: int, spacing: Spacing) -> np.ndarray:
        every = np.arange(self.num_timesteps)
        place = {
            "t": every,
            "log-snr": -self.log_snr.clamp(min=-math.log(MAX_SIGMA)).numpy(),
            "angle": self.angle.numpy(),
        }[spacing]
        even = np.linspace(place[-1], place[0], num_steps)[::-1]
        visited = np.interp(even, place, every).round().astype(np.int64)
        visited[-1] = self.num_timesteps - 1
        # No timestep twice, where they lie closer than 1 apart.
        i = np.arange(num_steps)
        visited = np.maximum.accumulate(visited - i) + i
        return np.minimum(visited, self.num_timesteps - num_steps + i)


def make_schedule(name: str, num_timesteps: int, zero_terminal_snr: bool = False) -> Schedule:
    if name not in SCHEDULES:
        raise ConfigError(f"schedule is {name!r}: expected one of {', '.join(sorted(SCHEDULES))}")
    betas = SCHEDULES[name](num_timesteps)
    if betas.max() >= 1:
        raise ConfigError(
            f"num_timesteps is {num_timesteps}: so few steps of schedule {name!r} would each take "
            f"away more than there is; expected more than {MIN_LINEAR_STEPS}, or schedule 'cosine'"
        )
    return Schedule.from_betas(with_zero_terminal_snr(betas) if zero_terminal_snr else betas)
