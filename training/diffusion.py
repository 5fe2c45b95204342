"""The forward process and the training loss of DDPM (Ho et al. 2020, Algorithm 1).

Shapes: B pictures, C = 3 channels, H x W pixels; x_0 and x_t are `[B, C, H, W]`, x_0 in
[-1, 1]; t is `[B]`, 0-indexed (the paper's t minus 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from infra.errors import ConfigError
from training.config import Config
from training.schedule import Schedule, make_schedule


class Denoiser(Protocol):
    """A network that looks at x_t and a text; what it puts out is for an `Objective` to read.

    `text_tokens` is `[B, L, W]`, `text_mask` `[B, L]` and True where there is a token. A row
    without any True is the unconditional case.
    """

    def __call__(
        self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor
    ) -> Tensor: ...


Prediction = Literal["eps", "v", "x_0"]
Weighting = Literal["uniform", "v", "x_0", "min-snr"]

Network = Callable[[Tensor, Tensor], Tensor]
"""A Denoiser with the text bound to it: (x_t, t) -> eps, v or x_0, as it was trained to."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""What a sampler sees: (x_t, t) -> x_0. Not eps, from which x_0 can't be had where x_t is noise
alone (zero terminal SNR)."""


class Losses(NamedTuple):
    """One for every picture: the mean over its pixels, `[B]`."""

    weighted: Tensor
    """What the gradient follows."""
    simple: Tensor
    """The squared error in eps, without a weight over t: L_simple (Ho et al. 2020, equation 14).
    Comparable whatever the network puts out and however its errors weigh."""


@dataclass(frozen=True)
class Objective:
    """What the network puts out, and how much an error at every t weighs."""

    schedule: Schedule
    prediction: Prediction
    tables: Tensor
    """float32 `[4, T]` on the network's device, so that a step copies nothing there: the rows are
    those of `Rates`."""

    def rates(self, t: Tensor, num_dims: int) -> "Rates":
        return Rates(*self.tables[:, t].view(4, -1, *[1] * (num_dims - 1)))

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps (equation 4)."""
        rates = self.rates(t, x_0.ndim)
        return rates.signal * x_0 + rates.noise * eps

    def per_sample_loss(self, network: Network, x_0: Tensor, t: Tensor, eps: Tensor) -> Losses:
        """Algorithm 1's loss at these timesteps, with this noise."""
        assert x_0.shape == eps.shape
        assert t.shape == x_0.shape[:1]
        rates = self.rates(t, x_0.ndim)
        output = network(rates.signal * x_0 + rates.noise * eps, t).float()
        target = self._target(x_0, eps, rates)
        assert output.shape == target.shape
        error = (output - target).square().flatten(1).mean(1)
        return Losses(rates.weight.flatten() * error, rates.error_in_eps.flatten() * error)

    def denoise(self, network: Network) -> Denoise:
        """The network as a predictor of x_0, whatever it puts out: equation 4 solved for it."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            output = network(x_t, t).float()
            rates = self.rates(t, x_t.ndim)
            match self.prediction:
                case "eps":
                    return (x_t - rates.noise * output) / rates.signal
                case "v":
                    return rates.signal * x_t - rates.noise * output
                case "x_0":
                    return output

        return denoise

    def _target(self, x_0: Tensor, eps: Tensor, rates: "Rates") -> Tensor:
        match self.prediction:
            case "eps":
                return eps
            case "v":  # Salimans & Ho 2022, section 4
                return rates.signal * eps - rates.noise * x_0
            case "x_0":
                return x_0


class Rates(NamedTuple):
    """Rows of an objective's tables at some timesteps, `[B, 1, ...]` each."""

    signal: Tensor
    """sqrt(alphas_cumprod)"""
    noise: Tensor
    """sqrt(1 - alphas_cumprod)"""
    weight: Tensor
    """Of the squared error of the network's output."""
    error_in_eps: Tensor
    """The squared error in eps that a squared error of 1 in the network's output amounts to."""


def make_objective(config: Config, device: torch.device | str = "cpu") -> Objective:
    """What the configuration asks for; `device` is the network's."""
    schedule = make_schedule(config.schedule, config.num_timesteps, config.zero_terminal_snr)
    abar = schedule.alphas_cumprod
    snr = abar / (1 - abar)
    if config.prediction == "eps" and abar[-1] == 0:
        raise ConfigError(
            "prediction is 'eps' with zero_terminal_snr: the last x_t is nothing but eps, which "
            "says nothing about the picture; expected prediction 'v' or 'x_0'"
        )
    in_x_0 = _weight_in_x_0(config.weighting, snr, config.min_snr_gamma)
    # |error in eps|^2 = SNR |error in x_0|^2 = alphas_cumprod |error in v|^2: equation 4 and the
    # definition of v at a given x_t (Salimans & Ho 2022, section 4).
    match config.prediction:
        case "eps":
            weight, error_in_eps = in_x_0 / snr, torch.ones_like(abar)
        case "v":
            weight, error_in_eps = in_x_0 * (1 - abar), abar
        case "x_0":
            weight, error_in_eps = in_x_0, snr
    tables = torch.stack([abar.sqrt(), (1 - abar).sqrt(), weight, error_in_eps])
    return Objective(schedule, config.prediction, tables.float().to(device))


def _weight_in_x_0(weighting: Weighting, snr: Tensor, gamma: float) -> Tensor:
    """The weight of a squared error in x_0."""
    match weighting:
        case "uniform":  # in eps: L_simple (Ho et al. 2020, equation 14)
            return snr
        case "v":  # "SNR+1" (Salimans & Ho 2022, section 4)
            return snr + 1
        case "x_0":
            return torch.ones_like(snr)
        case "min-snr":  # nearly clean pictures weigh no more than gamma (Hang et al. 2023, 3.4)
            return snr.clamp(max=gamma)
