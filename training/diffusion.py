"""The forward process and the training loss of DDPM (Ho et al. 2020, Algorithm 1).

Shapes: B pictures, C = 3 channels, H x W pixels; x_0 and x_t are `[B, C, H, W]`, x_0 in
[-1, 1]; t is `[B]`, 0-indexed (the paper's t minus 1).
"""

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

from training.schedule import Schedule, gather


class Denoiser(Protocol):
    """A network that looks at x_t and a text; what it puts out is for `predicting_eps` to read.

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
    denoise: Denoise, x_0: Tensor, t: Tensor, eps: Tensor, schedule: Schedule
) -> Tensor:
    """The mean over each picture's pixels of the squared error in eps, `[B]`: L_simple
    (equation 14), without a weight over t."""
    assert x_0.shape == eps.shape
    assert t.shape == x_0.shape[:1]
    predicted = denoise(q_sample(x_0, t, eps, schedule), t)
    return (predicted.float() - eps).square().flatten(1).mean(1)


def predicting_eps(network: Denoiser, schedule: Schedule, prediction: Prediction) -> Denoiser:
    """The network as a predictor of eps, whatever it puts out.

    With v = sqrt(alphas_cumprod_t) eps - sqrt(1 - alphas_cumprod_t) x_0 (Salimans & Ho 2022,
    section 4), eps is the sum below. Where x_t is nearly all noise, eps is nearly x_t whatever the
    network says, so its mistakes about x_0 stay small there; a network that puts out eps itself
    must first learn to copy x_t to within sqrt(alphas_cumprod_t).
    """
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
