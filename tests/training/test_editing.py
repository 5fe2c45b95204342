"""Editing against closed forms: pictures of two pixels, Gaussian with correlation 0.9."""

import functools

import pytest
import torch
from torch import Tensor

from training.editing import from_picture, keeping, repaint
from training.samplers import SAMPLERS, Generators
from training.schedule import make_schedule

SCHEDULE = make_schedule("cosine", 1000)
RHO, S = 0.9, 0.4
COVARIANCE = S**2 * torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)
KEPT = 0.5
MASK = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)  # the left pixel stays


def optimum(x_t: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] = a Sigma (a^2 Sigma + b^2 I)^-1 x_t."""
    abar = SCHEDULE.alphas_cumprod[t[0]]
    marginal = abar * COVARIANCE + (1 - abar) * torch.eye(2, dtype=torch.float64)
    gain: Tensor = abar.sqrt() * COVARIANCE @ torch.linalg.inv(marginal)
    return (x_t.double() @ gain.T).to(x_t.dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(num: int) -> Tensor:
    return torch.randn(num, 1, 1, 2, generator=generator(1))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_inpainting_keeps_what_the_mask_marks_with_any_sampler(name: str) -> None:
    picture = torch.full((64, 1, 1, 2), KEPT)
    denoise = keeping(optimum, picture, MASK)
    x_0 = SAMPLERS[name](denoise, noise(64), SCHEDULE, 50, generator())
    assert torch.equal(x_0[..., 0], picture[..., 0])
    assert x_0[..., 1].std() > 0.05  # and draws the rest
    assert x_0[..., 1].mean() > 0.15  # to fit


def test_resampling_makes_what_is_drawn_fit_what_is_kept() -> None:
    num = 1000
    picture = torch.full((num, 1, 1, 2), KEPT)

    def drawn(num_resamples: int) -> Tensor:
        x_0 = repaint(
            optimum, noise(num), SCHEDULE, 250, generator(), picture=picture, mask=MASK,
            num_resamples=num_resamples, clip=False,
        )  # fmt: skip
        assert torch.equal(x_0[..., 0], picture[..., 0])
        return x_0[..., 1]

    mean, std = RHO * KEPT, S * (1 - RHO**2) ** 0.5  # of the right pixel, given the left
    once, often = drawn(1), drawn(10)
    assert often.mean().item() == pytest.approx(mean, rel=0.05)
    assert often.std().item() == pytest.approx(std, rel=0.12)
    assert abs(often.mean() - mean) < abs(once.mean() - mean)
    assert abs(often.std() - std) < abs(once.std() - std)


def test_image_to_image_starts_from_the_picture_noised_by_strength() -> None:
    picture = torch.full((4000, 1, 1, 2), KEPT)
    x_t, shorter, num_steps = from_picture(picture, 0.3, SCHEDULE, 100, generator())
    assert (shorter.num_timesteps, num_steps) == (300, 30)
    abar = SCHEDULE.alphas_cumprod[299].item()
    assert x_t.mean().item() == pytest.approx(abar**0.5 * KEPT, abs=0.02)
    assert x_t.var().item() == pytest.approx(1 - abar, rel=0.05)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_more_strength_leaves_less_of_the_picture(name: str) -> None:
    # Both pixels bright, as the data often is: not to be mistaken for the mean, which is 0.
    picture = torch.full((256, 1, 1, 2), KEPT)

    def mean(strength: float) -> float:
        x_t, shorter, num_steps = from_picture(picture, strength, SCHEDULE, 50, generator())
        return SAMPLERS[name](optimum, x_t, shorter, num_steps, generator(2)).mean().item()

    assert mean(0.05) == pytest.approx(KEPT, abs=0.05)
    assert mean(0.05) > mean(0.5) > mean(0.8) > mean(1.0) - 0.02
    assert mean(1.0) == pytest.approx(0, abs=0.1)


def test_edit_of_a_picture_depends_on_its_own_generator_alone() -> None:
    picture = torch.rand(3, 1, 1, 2, generator=generator())

    def draw(rows: slice) -> Tensor:
        generators: Generators = [generator(i) for i in range(3)][rows]
        sampler = functools.partial(repaint, picture=picture[rows], mask=MASK, num_resamples=3)
        x_t, shorter, steps = from_picture(picture[rows], 0.7, SCHEDULE, 20, generators)
        return sampler(optimum, x_t, shorter, steps, generators)

    torch.testing.assert_close(draw(slice(1, 2)), draw(slice(0, 3))[1:2])
