"""The forward process and the training loss of DDPM (Ho et al. 2020, Algorithm 1).

Shapes: B pictures, C = 3 channels, H x W pixels; x_0 and x_t are `[B, C, H, W]`, x_0 in
[-1, 1]; t is `[B]`, 0-indexed (the paper's t minus 1).
"""

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

from training.schedule import Schedule, gather


class Denoiser(Protocol):
    """A network that predicts the noise in x_t, given a text.

    `text_tokens` is `[B, L, W]`, `text_mask` `[B, L]` and True where there is a token. A row
    without any True is the unconditional case.
    """

    def __call__(
        self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor
    ) -> Tensor: ...


Prediction = Literal["eps", "v"]

# What a loss or a sampler sees, once the text is bound: (x_t, t) -> eps.
Denoise = Callable[[Tensor, Tensor], Tensor]


def q_sample(x_0: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps (equation 4)."""
    signal = gather(schedule.alphas_cumprod.sqrt(), t, x_0.ndim)
    noise = gather((1 - schedule.alphas_cumprod).sqrt(), t, x_0.ndim)
    return signal * x_0 + noise * eps


def per_sample_loss(
    denoise: Denoise,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    schedule: Schedule,
    prediction: Prediction = "eps",
) -> Tensor:
    """The mean over each picture's pixels of the squared error in what the network predicts, `[B]`.

    With "eps" it is L_simple (equation 14), without a weight over t. With "v" it is the same
    error weighted by 1 / alphas_cumprod_t, which teaches shapes and colours sooner.
    """
    assert x_0.shape == eps.shape
    assert t.shape == x_0.shape[:1]
    target = eps if prediction == "eps" else v_from_eps(x_0, t, eps, schedule)
    predicted = denoise(q_sample(x_0, t, eps, schedule), t)
    return (predicted.float() - target).square().flatten(1).mean(1)


def v_from_eps(x_0: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """v = sqrt(alphas_cumprod_t) eps - sqrt(1 - alphas_cumprod_t) x_0 (Salimans & Ho 2022,
    section 4)."""
    signal = gather(schedule.alphas_cumprod.sqrt(), t, x_0.ndim)
    noise = gather((1 - schedule.alphas_cumprod).sqrt(), t, x_0.ndim)
    return signal * eps - noise * x_0


def predicting_eps(network: Denoiser, schedule: Schedule, prediction: Prediction) -> Denoiser:
    """The network as samplers want it, whatever it was trained to predict."""
    if prediction == "eps":
        return network

    def denoiser(x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        v = network(x_t, t, text_tokens, text_mask).float()
        signal = gather(schedule.alphas_cumprod.sqrt(), t, x_t.ndim)
        noise = gather((1 - schedule.alphas_cumprod).sqrt(), t, x_t.ndim)
        return signal * v + noise * x_t

    return denoiser


def eps_from_x_0(x_t: Tensor, x_0: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The noise that leads from x_0 to x_t: equation 4 solved for eps."""
    signal = gather(schedule.alphas_cumprod.sqrt(), t, x_t.ndim)
    noise = gather((1 - schedule.alphas_cumprod).sqrt(), t, x_t.ndim)
    return (x_t - signal * x_0) / noise
