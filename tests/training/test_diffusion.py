"""The loss against the closed forms of Gaussian data N(mu, s^2), where
eps* = sqrt(1 - abar) (x - sqrt(abar) mu) / (abar s^2 + 1 - abar)."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.errors import ConfigError
from training.config import Config
from training.diffusion import Network, Objective, make_objective

PREDICTIONS = ["eps", "v", "x_0"]


def objective_of(**settings: Any) -> Objective:
    return make_objective(Config(root="corpus", run="run", **settings))


def optimal(objective: Objective, mu: float, s: float) -> Network:
    """The best network for pictures from N(mu, s^2), in the objective's own terms."""
    abar = objective.schedule.alphas_cumprod

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        abar_t = abar[t].view(-1, 1, 1, 1)
        x_t = x_t.double()
        variance = abar_t * s**2 + 1 - abar_t
        eps = (1 - abar_t).sqrt() * (x_t - abar_t.sqrt() * mu) / variance
        x_0 = (abar_t.sqrt() * s**2 * x_t + (1 - abar_t) * mu) / variance
        v = abar_t.sqrt() * eps - (1 - abar_t).sqrt() * x_0
        return {"eps": eps, "v": v, "x_0": x_0}[objective.prediction].float()

    return network


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_q_sample_has_the_mean_and_variance_of_equation_4(schedule: str) -> None:
    objective = objective_of(schedule=schedule)
    eps = torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for step in (0, 300, 999):
        t = torch.full((4000,), step)
        x_t = objective.q_sample(torch.full_like(eps, 0.7), t, eps)
        abar = objective.schedule.alphas_cumprod[step].item()
        assert x_t.mean().item() == pytest.approx(0.7 * abar**0.5, abs=0.01)
        assert x_t.var().item() == pytest.approx(1 - abar, rel=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("schedule", "s", "floor"),
    [
        ("linear", 0.5, 0.173053),
        ("linear", 1.0, 0.275513),
        ("cosine", 0.5, 0.327653),
        ("cosine", 1.0, 0.495578),
    ],
)
def test_optimum_reaches_the_floor_of_the_loss_whatever_is_predicted(
    schedule: str, s: float, floor: float, prediction: str
) -> None:
    objective = objective_of(schedule=schedule, prediction=prediction, weighting="uniform")
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(1000)
    x_0 = 0.3 + s * torch.randn(1000, 1, 48, 48, generator=generator)
    eps = torch.randn(1000, 1, 48, 48, generator=generator)
    best = optimal(objective, 0.3, s)

    def loss(factor: float) -> float:
        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return factor * best(x_t, t)

        losses = objective.per_sample_loss(network, x_0, t, eps)
        # "uniform" is the paper's loss, from whatever the network puts out.
        torch.testing.assert_close(losses.weighted, losses.simple, rtol=1e-5, atol=0)
        return losses.simple.mean().item()

    assert loss(1.0) == pytest.approx(floor, rel=0.01)
    assert loss(0.98) > loss(1.0)
    assert loss(1.02) > loss(1.0)


def answer(output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    assert len(output) == len(x_t) == len(t)
    return output


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_the_same_whatever_is_predicted(prediction: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x_0, eps = torch.randn(2, 8, 3, 4, 4, generator=generator)
    off = torch.randn(8, 3, 4, 4, generator=generator)  # the error in x_0
    t = torch.linspace(0, 999, 8).long()
    for weighting in ("uniform", "v", "x_0", "min-snr"):
        objective = objective_of(prediction=prediction, weighting=weighting, min_snr_gamma=5)
        abar = objective.schedule.alphas_cumprod[t]
        signal, noise = abar.sqrt().view(-1, 1, 1, 1), (1 - abar).sqrt().view(-1, 1, 1, 1)
        # At a given x_t an error in x_0 is this error in the others (equation 4).
        outputs = {
            "x_0": x_0 + off,
            "eps": eps - signal / noise * off,
            "v": signal * eps - noise * x_0 - off / noise,
        }
        output = outputs[prediction].float()
        losses = objective.per_sample_loss(functools.partial(answer, output), x_0, t, eps)
        snr = abar / (1 - abar)
        weight = {
            "uniform": snr,
            "v": snr + 1,
            "x_0": torch.ones_like(snr),
            "min-snr": snr.clamp(max=5),  # Hang et al. 2023: min(SNR, gamma) on x_0
        }[weighting]
        error = off.double().square().flatten(1).mean(1)
        # What is left of an error after float32's rounding of x_0 or eps beside it.
        torch.testing.assert_close(losses.weighted, (weight * error).float(), rtol=2e-2, atol=1e-6)
        torch.testing.assert_close(losses.simple, (snr * error).float(), rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoise_recovers_x_0_from_whatever_is_predicted(prediction: str) -> None:
    objective = objective_of(schedule="linear", prediction=prediction)
    generator = torch.Generator().manual_seed(3)
    x_0, eps = torch.randn(2, 8, 3, 4, 4, generator=generator)
    t = torch.linspace(0, 999, 8).long()
    rates = objective.rates(t, 4)
    v = rates.signal * eps - rates.noise * x_0
    truth = {"eps": eps, "v": v, "x_0": x_0}[prediction]
    denoise = objective.denoise(functools.partial(answer, truth))
    torch.testing.assert_close(denoise(objective.q_sample(x_0, t, eps), t), x_0, atol=1e-4, rtol=0)


def test_rates_are_float32_of_the_float64_tables() -> None:
    rates = objective_of(schedule="linear").rates(torch.tensor([0, 999]), 4)
    assert rates.noise.shape == (2, 1, 1, 1)
    assert rates.noise.dtype == torch.float32
    # 1 - alphas_cumprod at t = 0 is beta_0 itself
    assert rates.noise[0].item() == pytest.approx(0.01, rel=1e-7)


def test_last_step_that_is_pure_noise_can_not_be_predicted_by_its_noise() -> None:
    with pytest.raises(ConfigError, match="expected prediction 'v' or 'x_0'"):
        objective_of(zero_terminal_snr=True, prediction="eps", weighting="uniform")
    objective = objective_of(zero_terminal_snr=True, prediction="v", weighting="v")
    x_T, t = torch.randn(2, 3, 4, 4), torch.tensor([999, 999])
    assert torch.equal(objective.denoise(lambda x_t, _t: -x_t)(x_T, t), x_T)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_trained_network_comes_near_the_floor_and_never_below_it(prediction: str) -> None:
    objective = objective_of(schedule="cosine", prediction=prediction)
    mu, s, floor = 0.3, 0.5, 0.327653
    generator = torch.Generator().manual_seed(4)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = torch.nn.Sequential(
            torch.nn.Linear(4, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
            torch.nn.Linear(64, 1),
        )  # fmt: skip

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        u = t.view(-1, 1) / 1000
        x = x_t.view(-1, 1)
        output: Tensor = net(torch.cat([x, u, x * u, torch.cos(3.14 * u)], 1))
        return output.view_as(x_t)

    def losses(network: Network, num: int) -> Tensor:
        t = torch.arange(num) % 1000
        x_0 = mu + s * torch.randn(num, 1, 1, 1, generator=generator)
        eps = torch.randn(num, 1, 1, 1, generator=generator)
        return objective.per_sample_loss(network, x_0, t, eps).simple

    def gap() -> float:
        """How far the network's loss lies above the optimum's, on the same noise."""
        state = generator.get_state()
        with torch.no_grad():
            ours = losses(network, 200_000).mean()
            generator.set_state(state)
            return (ours - losses(optimal(objective, mu, s), 200_000).mean()).item()

    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    gaps = [gap()]
    for _ in range(3):
        for _ in range(100):
            optimizer.zero_grad()
            torch.autograd.backward(losses(network, 2000).mean())
            optimizer.step()
        gaps.append(gap())
    assert gaps[0] > 0.05
    assert min(gaps) > 0
    assert gaps[-1] < 0.03 * floor
