"""Pictures that begin with a picture: image-to-image and inpainting."""

import math

import torch
from torch import Tensor

from training.diffusion import Denoise
from training.samplers import Generators, OnStep, Step, noise, posterior_mean, predicted_x_0
from training.schedule import Schedule


def from_picture(
    picture: Tensor, strength: float, schedule: Schedule, num_steps: int, generator: Generators
) -> tuple[Tensor, Schedule, int]:
    """Image-to-image (SDEdit, Meng et al. 2022): what to give to any sampler in place of x_T, the
    schedule and the number of steps.

    The picture `[B, C, H, W]` is noised up to a share `strength` in (0, 1] of the timesteps, and
    the sampler goes back from there in as large a share of its steps.
    """
    assert 0 < strength <= 1
    shorter = schedule.until(max(1, round(strength * schedule.num_timesteps)))
    steps = min(max(1, round(strength * num_steps)), shorter.num_timesteps)
    return _noised(picture, shorter.alphas_cumprod[-1].item(), generator), shorter, steps


def keeping(denoise: Denoise, picture: Tensor, mask: Tensor) -> Denoise:
    """Inpainting with any sampler: where `mask` `[B, 1, H, W]` is 1, the predicted x_0 is the
    picture's, so every x_t is a noised picture there and the last is the picture itself.

    The replacement method (Song et al. 2021, "Score-based generative modeling", appendix I.2; in
    latents, blending), written for x_0. It is cheap and its seams show: what was drawn at one t
    never hears of what it turned out not to fit. `repaint` mends that.
    """

    def kept(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(denoise(x_t, t), picture, mask)

    return kept


@torch.no_grad()
def repaint(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    num_steps: int,
    generator: Generators,
    *,
    picture: Tensor,
    mask: Tensor,
    num_resamples: int = 10,
    on_step: OnStep | None = None,
    clip: bool = True,
) -> Tensor:
    """Inpainting by ancestral sampling with resampling (RePaint, Lugmayr et al. 2022, Algorithm 1).

    What `mask` `[B, 1, H, W]` marks with 1 is noised anew from the picture at every step, and every
    step is taken `num_resamples` times, with its noise added back in between, so that what is drawn
    comes to fit what is kept. 10 is the paper's number: ten times the evaluations.
    """
    sub, timesteps = schedule.subsequence(num_steps)
    x = x_T
    for i in reversed(range(num_steps)):
        for remaining in reversed(range(num_resamples if i > 0 else 1)):
            x_0 = predicted_x_0(denoise, x, timesteps[i], clip)
            drawn = posterior_mean(x, x_0, sub, i)
            if i > 0:
                drawn = drawn + math.sqrt(sub.posterior_variance[i].item()) * noise(x, generator)
            known = _noised(picture, sub.alphas_cumprod_prev[i].item(), generator)
            before = torch.lerp(drawn, known, mask)
            if remaining:
                x = math.sqrt(sub.alphas[i].item()) * before
                x = x + math.sqrt(sub.betas[i].item()) * noise(x, generator)
        x = before
        if on_step is not None:
            on_step(Step(num_steps - 1 - i, timesteps[i], x, x_0))
    return x


def _noised(picture: Tensor, alpha_cumprod: float, generator: Generators) -> Tensor:
    """Equation 4 of Ho et al. 2020 at one t."""
    if alpha_cumprod == 1:
        return picture
    drawn = noise(picture, generator)
    return math.sqrt(alpha_cumprod) * picture + math.sqrt(1 - alpha_cumprod) * drawn
