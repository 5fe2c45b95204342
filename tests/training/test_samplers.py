import functools
import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from training.samplers import SAMPLERS, Sampler, Step, ddim, ddpm, dpm_solver, heun
from training.schedule import make_schedule

SCHEDULE = make_schedule("linear", 1000)


def gaussian_x_0(x_t: Tensor, t: Tensor, s: float) -> Tensor:
    """The optimal denoiser of N(0, s^2)."""
    abar = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    return (abar.sqrt() * s**2 / (abar * s**2 + 1 - abar)).to(x_t.dtype) * x_t


# Std of what Algorithm 2 makes of N(0, s^2) with the optimal eps: beta-tilde falls short of s
# and beta is nearly right, so swapped variances fail here.
@pytest.mark.parametrize(
    ("s", "variance", "std"),
    [
        (0.5, "small", 0.49611),
        (0.5, "large", 0.50075),
        (1.0, "small", 0.99552),
        (1.0, "large", 0.99995),
    ],
)
def test_ancestral_sampling_has_its_variances_std(
    s: float, variance: Literal["small", "large"], std: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(1, 1, 150, 250, generator=generator)
    sampler = functools.partial(ddpm, variance=variance, clip=False)
    x_0 = sampler(functools.partial(gaussian_x_0, s=s), x_T, SCHEDULE, 1000, generator)
    assert x_0.std().item() == pytest.approx(std, rel=0.004)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_last_step_adds_no_noise(name: str) -> None:
    x_T = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    # sigma_1 is 0.01, ten times what is left of data as narrow as this.
    denoise = functools.partial(gaussian_x_0, s=1e-3)
    x_0 = SAMPLERS[name](denoise, x_T, SCHEDULE, 100, torch.Generator().manual_seed(2))
    assert x_0.std().item() < 2e-3


# The flow of N(mu, s^2) leaves every picture at its quantile: what is a mu + sqrt(a^2 s^2 + b^2) z
# at one t is so at every other, with the same z.
@pytest.mark.parametrize(
    ("sampler", "order"), [(ddim, 1), (dpm_solver, 2), (heun, 2)], ids=["ddim", "dpm++", "heun"]
)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_error_of_the_flows_solvers_falls_with_their_order(
    sampler: Sampler, order: int, name: str
) -> None:
    schedule, mu, s = make_schedule(name, 50_000), 0.3, 0.5  # so fine that rounding t is nothing
    abar = schedule.alphas_cumprod
    std = (abar * s**2 + 1 - abar).sqrt()
    z = torch.linspace(-2, 2, 41, dtype=torch.float64).view(1, 1, 1, -1)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, b2 = abar[t].sqrt(), 1 - abar[t]
        return mu + a * s**2 / (a**2 * s**2 + b2) * (x_t - a * mu)

    def error(num_steps: int) -> float:
        steps: list[Step] = []
        x_T = abar[-1].sqrt() * mu + std[-1] * z
        generator = torch.Generator()
        sampler(denoise, x_T, schedule, num_steps, generator, on_step=steps.append, clip=False)
        # At the least noisy t, before the last step, which is of first order in all of them.
        exact = abar[0].sqrt() * mu + std[0] * z
        return (steps[-2].x - exact).abs().max().item()

    errors = [error(num_steps) for num_steps in (33, 65, 129)]
    slopes = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert slopes == pytest.approx([order] * 2, abs=0.25)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_zero_terminal_snr_is_sampled_from_pure_noise(name: str) -> None:
    # A network trained on x_0 alone knows the mean at the last step, where eps could not say it.
    schedule = make_schedule("linear", 1000, zero_terminal_snr=True)
    abar = schedule.alphas_cumprod
    seen: list[int] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(int(t[0]))
        a = abar[t].sqrt().view(-1, 1, 1, 1)
        return -0.7 + a * 0.01 / (a**2 * 0.01 + 1 - a**2) * (x_t + 0.7 * a)  # N(-0.7, 0.1^2)

    generator = torch.Generator().manual_seed(8)
    x_T = torch.randn(1, 1, 64, 64, generator=generator)
    x_0 = SAMPLERS[name](denoise, x_T, schedule, 250, generator)
    assert seen[0] == 999
    assert x_0.mean().item() == pytest.approx(-0.7, abs=0.01)
    assert x_0.std().item() == pytest.approx(0.1, rel=0.15)


def test_ddim_keeps_the_std_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(1, 1, 200, 200, generator=generator)
    sampler = functools.partial(ddim, clip=False)
    x_0 = sampler(functools.partial(gaussian_x_0, s=0.5), x_T, SCHEDULE, 1000, generator)
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
