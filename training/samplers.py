"""From noise to pictures: the samplers, and classifier-free guidance.

A sampler is a function `(denoise, x_T, schedule, num_steps, generator) -> x_0`; `denoise` is
`(x_t, t) -> x_0`, the network's guess at the picture, with the text already bound to it. With
`on_step` it also shows every intermediate picture. All draws come from `generator`, on the
generator's own device, so a seed on the CPU gives the same noise whatever device the network
runs on.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from training.diffusion import Denoise, Denoiser, Network
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

    `variance` is sigma_t^2: "small" is beta-tilde, "large" is beta (section 3.2). `clip` holds
    the predicted x_0 in [-1, 1] before the posterior mean is taken, as the paper's code does;
    without it the mean is the line of Algorithm 2, written in x_0 for eps.
    """
    sub, timesteps = schedule.subsequence(num_steps)
    variances = {"small": sub.posterior_variance, "large": sub.betas}[variance]
    x = x_T
    for i in reversed(range(num_steps)):
        t = torch.full((len(x),), timesteps[i], device=x.device)
        x_0 = _picture(denoise, x, t, clip)
        # Equation 7.
        alpha, beta = sub.alphas[i].item(), sub.betas[i].item()
        alpha_cumprod, previous = sub.alphas_cumprod[i].item(), sub.alphas_cumprod_prev[i].item()
        mean = math.sqrt(previous) * beta / (1 - alpha_cumprod) * x_0
        mean = mean + math.sqrt(alpha) * (1 - previous) / (1 - alpha_cumprod) * x
        x = mean if i == 0 else mean + math.sqrt(variances[i].item()) * noise(x, generator)
        if on_step is not None:
            on_step(Step(num_steps - 1 - i, timesteps[i], x, x_0))
    return x


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
    x = x_T
    for i in reversed(range(num_steps)):
        t = torch.full((len(x),), timesteps[i], device=x.device)
        alpha_cumprod, previous = sub.alphas_cumprod[i].item(), sub.alphas_cumprod_prev[i].item()
        x_0 = _picture(denoise, x, t, clip)
        # The direction to x_t agrees with the picture, clipped or not.
        eps = (x - math.sqrt(alpha_cumprod) * x_0) / math.sqrt(1 - alpha_cumprod)
        sigma = eta * math.sqrt(sub.posterior_variance[i].item())  # equation 16
        x = math.sqrt(previous) * x_0 + math.sqrt(max(0.0, 1 - previous - sigma**2)) * eps
        if sigma > 0:
            x = x + sigma * noise(x, generator)
        if on_step is not None:
            on_step(Step(num_steps - 1 - i, timesteps[i], x, x_0))
    return x


# What a configuration can name.
SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddpm-large-variance": functools.partial(ddpm, variance="large"),
    "ddim": ddim,
}


def guided(
    denoiser: Denoiser, text_tokens: Tensor, text_mask: Tensor, guidance_scale: float
) -> Network:
    """Classifier-free guidance (Ho & Salimans 2022): eps_u + w (eps_c - eps_u).

    w = 1 is the conditional prediction, w = 0 the unconditional one. (The paper's w is this
    one minus 1.) Both halves go through the network as one batch. Every text mask False is
    the unconditional case.
    """
    tokens = torch.cat([text_tokens, text_tokens])
    mask = torch.cat([text_mask, torch.zeros_like(text_mask)])

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        if guidance_scale == 1:
            return denoiser(x_t, t, text_tokens, text_mask)
        both = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), tokens, mask)
        conditional, unconditional = both.chunk(2)
        # lerp is exact at both ends, where u + w (c - u) rounds
        return torch.lerp(unconditional, conditional, guidance_scale)

    return network


def _picture(denoise: Denoise, x_t: Tensor, t: Tensor, clip: bool) -> Tensor:
    x_0 = denoise(x_t, t).float()
    return x_0.clamp(-1, 1) if clip else x_0


def noise(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal, of the same shape; from as many generators each picture from its own."""
    if isinstance(generator, torch.Generator):
        drawn = torch.randn(like.shape, generator=generator, device=generator.device)
    else:
        assert len(generator) == len(like)
        shape = like.shape[1:]
        drawn = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generator])
    return drawn.to(like.device)
