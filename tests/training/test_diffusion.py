"""The loss against the closed forms of Gaussian data N(mu, s^2), where
eps* = sqrt(1 - abar) (x - sqrt(abar) mu) / (abar s^2 + 1 - abar)."""

import pytest
import torch
from torch import Tensor

from training.diffusion import (
    eps_from_x_0,
    per_sample_loss,
    predicting_eps,
    q_sample,
)
from training.schedule import Schedule, gather, make_schedule


def optimal_eps(x_t: Tensor, t: Tensor, schedule: Schedule, mu: float, s: float) -> Tensor:
    abar = gather(schedule.alphas_cumprod, t, x_t.ndim)
    one_minus = gather(1 - schedule.alphas_cumprod, t, x_t.ndim)
    return one_minus.sqrt() * (x_t - abar.sqrt() * mu) / (abar * s**2 + one_minus)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_q_sample_has_the_mean_and_variance_of_equation_4(name: str) -> None:
    schedule = make_schedule(name, 1000)
    eps = torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for step in (0, 300, 999):
        t = torch.full((4000,), step)
        x_t = q_sample(torch.full_like(eps, 0.7), t, eps, schedule)
        abar = schedule.alphas_cumprod[step].item()
        assert x_t.mean().item() == pytest.approx(0.7 * abar**0.5, abs=0.01)
        assert x_t.var().item() == pytest.approx(1 - abar, rel=0.02)


@pytest.mark.parametrize(
    ("name", "s", "floor"),
    [
        ("linear", 0.5, 0.173053),
        ("linear", 1.0, 0.275513),
        ("cosine", 0.5, 0.327653),
        ("cosine", 1.0, 0.495578),
    ],
)
def test_optimal_eps_reaches_the_floor_of_the_loss(name: str, s: float, floor: float) -> None:
    schedule = make_schedule(name, 1000)
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(1000)
    x_0 = 0.3 + s * torch.randn(1000, 1, 48, 48, generator=generator)
    eps = torch.randn(1000, 1, 48, 48, generator=generator)

    def loss(factor: float) -> float:
        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return factor * optimal_eps(x_t, t, schedule, 0.3, s)

        return per_sample_loss(denoise, x_0, t, eps, schedule).mean().item()

    assert loss(1.0) == pytest.approx(floor, rel=0.01)
    assert loss(0.9) > loss(1.0)
    assert loss(1.1) > loss(1.0)


def test_eps_from_x_0_inverts_q_sample() -> None:
    schedule = make_schedule("linear", 1000)
    generator = torch.Generator().manual_seed(2)
    x_0, eps = torch.randn(2, 8, 3, 4, 4, generator=generator)
    t = torch.linspace(50, 999, 8).long()
    recovered = eps_from_x_0(q_sample(x_0, t, eps, schedule), x_0, t, schedule)
    torch.testing.assert_close(recovered, eps, atol=1e-4, rtol=1e-4)


def test_network_that_puts_out_v_predicts_eps_too() -> None:
    schedule = make_schedule("cosine", 1000)
    generator = torch.Generator().manual_seed(3)
    x_0, eps, off = torch.randn(3, 8, 3, 4, 4, generator=generator)
    t = torch.linspace(0, 999, 8).long()
    signal = gather(schedule.alphas_cumprod.sqrt(), t, 4)
    noise = gather((1 - schedule.alphas_cumprod).sqrt(), t, 4)
    nothing = torch.zeros(8, 0, 4), torch.zeros(8, 0, dtype=torch.bool)

    def network(x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        assert len(x_t) == len(t) == len(text_tokens) == len(text_mask)
        v: Tensor = signal * eps - noise * x_0 + off
        return v

    predicted = predicting_eps(network, schedule, "v")(q_sample(x_0, t, eps, schedule), t, *nothing)
    torch.testing.assert_close(predicted, eps + signal * off, atol=1e-5, rtol=1e-5)
