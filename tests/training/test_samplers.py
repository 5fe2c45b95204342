import functools

import pytest
import torch
from torch import Tensor

from training.samplers import SAMPLERS, Step, ddim, ddpm, guided
from training.schedule import make_schedule

SCHEDULE = make_schedule("linear", 1000)


def gaussian_x_0(x_t: Tensor, t: Tensor, s: float) -> Tensor:
    """The optimal denoiser of N(0, s^2)."""
    abar = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    return (abar.sqrt() * s**2 / (abar * s**2 + 1 - abar)).float() * x_t


# Std of what Algorithm 2 makes of N(0, s^2) with the optimal eps: beta-tilde falls short of s
# and beta is nearly right, so swapped variances or noise at the last step fail here.
@pytest.mark.parametrize(
    ("s", "variance", "std"),
    [(0.5, "small", 0.49611), (0.5, "large", 0.50075), (1.0, "small", 0.99552)],
)
def test_ancestral_sampling_has_its_variances_std(s: float, variance: str, std: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(1, 1, 250, 400, generator=generator)
    sampler = functools.partial(ddpm, variance=variance, clip=False)  # type: ignore[arg-type]
    x_0 = sampler(lambda x, t: gaussian_x_0(x, t, s), x_T, SCHEDULE, 1000, generator)
    assert x_0.std().item() == pytest.approx(std, rel=0.003)


def test_ddim_keeps_the_std_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(1, 1, 200, 200, generator=generator)
    sampler = functools.partial(ddim, clip=False)
    x_0 = sampler(lambda x, t: gaussian_x_0(x, t, 0.5), x_T, SCHEDULE, 1000, generator)
    assert x_0.std().item() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("num_steps", [50, 1000])
def test_samplers_land_on_the_pictures_of_the_empirical_optimum(name: str, num_steps: int) -> None:
    pictures = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        abar = SCHEDULE.alphas_cumprod[t].view(-1, 1)
        gaps = x_t.flatten(1).double()[:, None] - abar.sqrt()[:, None] * pictures.flatten(1)
        weights = (-gaps.square().sum(-1) / (2 * (1 - abar))).softmax(-1)
        return (weights @ pictures.flatten(1).double()).view_as(x_t).float()

    generator = torch.Generator().manual_seed(4)
    x_T = torch.randn(12, 3, 4, 4, generator=generator)
    x_0 = SAMPLERS[name](denoise, x_T, SCHEDULE, num_steps, generator)
    distances = torch.cdist(x_0.flatten(1), pictures.flatten(1))
    assert distances.min(1).values.max().item() < 0.02
    assert len(set(distances.argmin(1).tolist())) >= 3  # and not all on the same picture


def test_step_is_the_line_of_algorithm_2() -> None:
    generator = torch.Generator().manual_seed(5)
    x_T = torch.randn(2, 3, 4, 4, generator=generator)
    steps: list[Step] = []
    optimum = functools.partial(gaussian_x_0, s=0.5)
    ddpm(
        optimum, x_T, SCHEDULE, 1000, generator, clip=False, variance="large", on_step=steps.append
    )
    again = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, 4, 4, generator=again)
    for step in steps:
        i = step.timestep
        alpha, abar = SCHEDULE.alphas[i].item(), SCHEDULE.alphas_cumprod[i].item()
        x_0 = optimum(x, torch.full((2,), i))
        eps = (x - abar**0.5 * x_0) / (1 - abar) ** 0.5
        x = (x - (1 - alpha) / (1 - abar) ** 0.5 * eps) / alpha**0.5
        if i > 0:
            x = x + (1 - alpha) ** 0.5 * torch.randn(x.shape, generator=again)
        torch.testing.assert_close(step.x, x, atol=1e-5, rtol=1e-4)


def test_on_step_sees_every_step_from_noise_to_picture() -> None:
    steps: list[Step] = []
    generator = torch.Generator().manual_seed(7)
    x_T = torch.randn(1, 3, 4, 4, generator=generator)
    x_0 = ddpm(
        functools.partial(gaussian_x_0, s=0.5), x_T, SCHEDULE, 10, generator, on_step=steps.append
    )
    assert [step.index for step in steps] == list(range(10))
    assert steps[0].timestep == 999
    assert steps[-1].timestep == 0
    assert torch.equal(steps[-1].x, x_0)
    assert torch.equal(steps[-1].x_0, x_0)


class TwoAnswers:
    """eps = 2 x with any text, -x without; counts its calls and their batch sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        assert len(t) == len(text_tokens)
        self.batches.append(len(x_t))
        has_text = text_mask.any(1).view(-1, 1, 1, 1)
        return torch.where(has_text, 2 * x_t, -x_t)


def test_guidance_interpolates_and_extrapolates_in_one_forward_pass() -> None:
    x, t = torch.randn(3, 3, 2, 2), torch.zeros(3, dtype=torch.long)
    tokens, mask = torch.zeros(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    denoiser = TwoAnswers()
    assert torch.equal(guided(denoiser, tokens, mask, 1.0)(x, t), 2 * x)
    assert torch.equal(guided(denoiser, tokens, mask, 0.0)(x, t), -x)
    torch.testing.assert_close(guided(denoiser, tokens, mask, 3.0)(x, t), -x + 3 * (3 * x))
    assert denoiser.batches == [3, 6, 6]
