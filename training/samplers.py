"""From noise to pictures: the samplers.

A sampler is a function `(denoise, x_T, schedule, num_steps, generator) -> x_0`; `denoise` is
`(x_t, t) -> x_0`, the network's guess at the picture, with the text already bound to it. With
`on_step` it also shows every intermediate picture. All draws come from `generator`, on the
generator's own device, so a seed on the CPU gives the same noise whatever device the network
runs on. `clip` holds every predicted x_0 in [-1, 1]: right for pixels, wrong for latents.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from training.diffusion import Denoise
from training.schedule import Schedule


@dataclass(frozen=True)
class Step:
    """One step of sampling, as `on_step` is told: which it was and what came out."""

    index: int  # 0 .. num_steps - 1
    timestep: int  # 0-indexed in the training schedule; falls to 0
    x: Tensor  # [B, C, H, W] after the step: x_{t-1}
    x_0: Tensor  # [B, C, H, W] the picture predicted at this step


OnStep = Callable[[Step], None]

# One for the batch, or one a picture: then its noise is its own, whatever is drawn beside it.
Generators = torch.Generator | Sequence[torch.Generator]


class Sampler(Protocol):
    def __call__(
        self,
        denoise: Denoise,
        x_T: Tensor,
        schedule: Schedule,
        num_steps: int,
        generator: Generators,
        *,
        on_step: OnStep | None = None,
        clip: bool = True,
    ) -> Tensor: ...


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    num_steps: int,
    generator: Generators,
    *,
    on_step: OnStep | None = None,
    variance: Literal["small", "large"] = "small",
    clip: bool = True,
) -> Tensor:
    """Ancestral sampling: Algorithm 2 of Ho et al. 2020.

    `variance` is sigma_t^2: "small" is beta-tilde, "large" is beta (section 3.2). The mean is
    equation 7's: without `clip` the line of Algorithm 2, written in x_0 for eps; the paper's code
    clips.
    """
    sub, timesteps = schedule.subsequence(num_steps)
    variances = {"small": sub.posterior_variance, "large": sub.betas}[variance]

    def back(x: Tensor, x_0: Tensor, i: int) -> Tensor:
        mean = posterior_mean(x, x_0, sub, i)
        return mean if i == 0 else mean + math.sqrt(variances[i].item()) * noise(x, generator)

    return _all_the_way(denoise, x_T, timesteps, clip, back, on_step)


@torch.no_grad()
def ddim(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    num_steps: int,
    generator: Generators,
    *,
    on_step: OnStep | None = None,
    eta: float = 0.0,
    clip: bool = True,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12): deterministic at eta 0, ancestral at eta 1."""
    sub, timesteps = schedule.subsequence(num_steps)

    def back(x: Tensor, x_0: Tensor, i: int) -> Tensor:
        alpha_cumprod, previous = sub.alphas_cumprod[i].item(), sub.alphas_cumprod_prev[i].item()
        # The direction to x_t agrees with the picture, clipped or not.
        eps = (x - math.sqrt(alpha_cumprod) * x_0) / math.sqrt(1 - alpha_cumprod)
        sigma = eta * math.sqrt(sub.posterior_variance[i].item())  # equation 16
        x = math.sqrt(previous) * x_0 + math.sqrt(max(0.0, 1 - previous - sigma**2)) * eps
        return x + sigma * noise(x, generator) if sigma > 0 else x

    return _all_the_way(denoise, x_T, timesteps, clip, back, on_step)


@torch.no_grad()
def dpm_solver(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    num_steps: int,
    generator: Generators,
    *,
    on_step: OnStep | None = None,
    clip: bool = True,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order at one evaluation a step.

    Steps are even in log-SNR, which it needs: docs/diffusion.md. The first has no step before it
    to extrapolate from and the last is infinite; both are of first order.
    """
    del generator  # it draws nothing
    sub, timesteps = schedule.subsequence(num_steps, "log-snr")
    signals: list[float] = sub.alphas_cumprod.sqrt().tolist()
    noises: list[float] = (1 - sub.alphas_cumprod).sqrt().tolist()
    log_snr: list[float] = sub.log_snr.tolist()
    before = x_T

    def back(x: Tensor, x_0: Tensor, i: int) -> Tensor:
        nonlocal before
        ahead = x_0
        if 0 < i < num_steps - 1:
            # After a step from pure noise (zero terminal SNR) r is infinite: first order again.
            r = (log_snr[i] - log_snr[i + 1]) / (log_snr[i - 1] - log_snr[i])
            ahead = x_0 + (x_0 - before) / (2 * r)
        before = x_0
        signal, noise_left = (signals[i - 1], noises[i - 1]) if i > 0 else (1.0, 0.0)
        # The paper's alpha (1 - exp(-h)), written without the infinities that h may be.
        share = noise_left / noises[i]
        return share * x + (signal - signals[i] * share) * ahead

    return _all_the_way(denoise, x_T, timesteps, clip, back, on_step)


@torch.no_grad()
def heun(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    num_steps: int,
    generator: Generators,
    *,
    on_step: OnStep | None = None,
    clip: bool = True,
) -> Tensor:
    """Heun's method on the probability flow (Karras et al. 2022, Algorithm 1): second order, two
    evaluations a step but the last.

    Of the paper's family the member with s = cos(phi), sigma = tan(phi), in which the flow is
    dx / dphi = (cos(phi) x - x_0) / sin(phi), which is v: finite in pure noise too, where the
    paper's own choice, sigma, isn't. Steps are even in phi.
    """
    del generator  # it draws nothing
    sub, timesteps = schedule.subsequence(num_steps, "angle")
    angles: list[float] = sub.angle.tolist()

    def back(x: Tensor, x_0: Tensor, i: int) -> Tensor:
        if i == 0:
            return x_0
        slope = _velocity(x, x_0, angles[i])
        h = angles[i - 1] - angles[i]
        there = x + h * slope
        x_0_there = predicted_x_0(denoise, there, timesteps[i - 1], clip)
        return x + h * (slope + _velocity(there, x_0_there, angles[i - 1])) / 2

    return _all_the_way(denoise, x_T, timesteps, clip, back, on_step)


# What a configuration can name.
SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddpm-large-variance": functools.partial(ddpm, variance="large"),
    "ddim": ddim,
    "dpm++": dpm_solver,
    "heun": heun,
}


def _all_the_way(
    denoise: Denoise,
    x_T: Tensor,
    timesteps: Sequence[int],
    clip: bool,
    back: Callable[[Tensor, Tensor, int], Tensor],
    on_step: OnStep | None,
) -> Tensor:
    """x_0, by a step `back(x_t, x_0, i) -> x_{t-1}` from each timestep."""
    x = x_T
    for i in reversed(range(len(timesteps))):
        x_0 = predicted_x_0(denoise, x, timesteps[i], clip)
        x = back(x, x_0, i)
        if on_step is not None:
            on_step(Step(len(timesteps) - 1 - i, timesteps[i], x, x_0))
    return x


def predicted_x_0(denoise: Denoise, x_t: Tensor, timestep: int, clip: bool) -> Tensor:
    t = torch.full((len(x_t),), timestep, device=x_t.device)
    x_0 = denoise(x_t, t).to(x_t.dtype)
    return x_0.clamp(-1, 1) if clip else x_0


def posterior_mean(x_t: Tensor, x_0: Tensor, schedule: Schedule, t: int) -> Tensor:
    """Of x_{t-1}, given x_t and x_0: equation 7."""
    alpha, beta = schedule.alphas[t].item(), schedule.betas[t].item()
    abar, previous = schedule.alphas_cumprod[t].item(), schedule.alphas_cumprod_prev[t].item()
    of_x_0 = math.sqrt(previous) * beta / (1 - abar)
    of_x_t = math.sqrt(alpha) * (1 - previous) / (1 - abar)
    return of_x_0 * x_0 + of_x_t * x_t


def _velocity(x_t: Tensor, x_0: Tensor, angle: float) -> Tensor:
    return (math.cos(angle) * x_t - x_0) / math.sin(angle)


def noise(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal, of the same shape; from as many generators each picture from its own."""

    def draw(shape: torch.Size, one: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=one, device=one.device, dtype=like.dtype)

    if isinstance(generator, torch.Generator):
        return draw(like.shape, generator).to(like.device)
    assert len(generator) == len(like)
    return torch.stack([draw(like.shape[1:], one) for one in generator]).to(like.device)
