"""The same mathematics as diffusers', on the same numbers.

diffusers keeps its tables in float32; they are compared after its formulas were given float64, and
as they stand to the 2e-4 that float32 costs them.
"""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from diffusers import schedulers, training_utils
from diffusers.schedulers import scheduling_ddim
from torch import Tensor

from training.config import Config
from training.diffusion import make_objective
from training.samplers import ddim, ddpm, dpm_solver, heun
from training.schedule import linear, make_schedule, with_zero_terminal_snr

# diffusers gives tensors to numpy in a way that numpy 2 would have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULE = make_schedule("linear", 1000)
SHAPE = (2, 3, 4, 4)


def scheduler_of(name: str, **settings: Any) -> Any:
    make = getattr(schedulers, name)
    return make(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **settings)


def in_float64(scheduler: Any) -> Any:
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.alpha_t = scheduler.alphas_cumprod.sqrt()
    scheduler.sigma_t = (1 - scheduler.alphas_cumprod).sqrt()
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def as_it_stands(scheduler: Any) -> Any:
    return scheduler


UPCAST = pytest.mark.parametrize(
    ("tables", "tolerance"), [(in_float64, 1e-6), (as_it_stands, 2e-4)], ids=["float64", "float32"]
)


def denoise(x_t: Tensor, t: Tensor) -> Tensor:
    """Something smooth that depends on both and is clipped here and there."""
    return 1.5 * torch.tanh(x_t - 0.3) * (1 - t.view(-1, 1, 1, 1) / 2000)


def start() -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64), generator


def theirs(scheduler: Any, x: Tensor, **step: Any) -> Tensor:
    for t in scheduler.timesteps:
        x_0 = denoise(x, t.expand(len(x)))
        x = scheduler.step(x_0, t, x, **step).prev_sample
    return x


@UPCAST
@pytest.mark.parametrize("num_steps", [50, 1000])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_sampler(
    variance: Literal["small", "large"],
    num_steps: int,
    tables: Callable[[Any], Any],
    tolerance: float,
) -> None:
    scheduler = tables(
        scheduler_of(
            "DDPMScheduler",
            variance_type=f"fixed_{variance}",
            prediction_type="sample",
            timestep_spacing="linspace",
        )
    )
    scheduler.set_timesteps(num_steps)
    x_T, generator = start()
    expected = theirs(scheduler, x_T, generator=generator)
    x_T, generator = start()
    x_0 = ddpm(denoise, x_T, SCHEDULE, num_steps, generator, variance=variance)
    torch.testing.assert_close(x_0, expected, atol=tolerance, rtol=0)


@UPCAST
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(eta: float, tables: Callable[[Any], Any], tolerance: float) -> None:
    scheduler = tables(scheduler_of("DDIMScheduler", prediction_type="sample"))
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(1000)
    x_T, generator = start()
    expected = theirs(scheduler, x_T, eta=eta, use_clipped_model_output=True, generator=generator)
    x_T, generator = start()
    x_0 = ddim(denoise, x_T, SCHEDULE, 1000, generator, eta=eta)
    torch.testing.assert_close(x_0, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("num_steps", [5, 20, 100])
def test_dpm_solver(num_steps: int) -> None:
    scheduler = in_float64(
        scheduler_of(
            "DPMSolverMultistepScheduler",
            prediction_type="sample",
            final_sigmas_type="zero",
            timestep_spacing="linspace",
        )
    )
    _, timesteps = SCHEDULE.subsequence(num_steps, "log-snr")
    scheduler.set_timesteps(timesteps=timesteps[::-1])
    x_T, generator = start()
    expected = theirs(scheduler, x_T)
    x_0 = dpm_solver(denoise, x_T, SCHEDULE, num_steps, generator, clip=False)
    # Its sigmas stay in float32.
    torch.testing.assert_close(x_0, expected, atol=1e-5, rtol=0)


def test_heun_comes_to_the_same_picture() -> None:
    """Theirs steps in sigma, ours in the angle, so they agree in the limit alone."""
    abar = SCHEDULE.alphas_cumprod

    def gaussian(x_t: Tensor, t: Tensor) -> Tensor:  # N(0.2, 0.5^2)
        a = abar[t].sqrt().view(-1, 1, 1, 1)
        return 0.2 + a / 4 / (a**2 / 4 + 1 - a**2) * (x_t - 0.2 * a)

    scheduler = scheduler_of("HeunDiscreteScheduler", timestep_spacing="linspace")
    scheduler.set_timesteps(1000)
    x_T, generator = start()
    x = x_T * (1 + scheduler.sigmas[0].double() ** 2).sqrt()  # x_T / sqrt(alphas_cumprod_T)
    for t in scheduler.timesteps:
        at = t.round().long().expand(len(x))
        x_t = scheduler.scale_model_input(x, t)
        a = abar[at].sqrt().view(-1, 1, 1, 1)
        eps = (x_t - a * gaussian(x_t, at)) / (1 - a**2).sqrt()
        x = scheduler.step(eps, t, x).prev_sample
    x_0 = heun(gaussian, x_T, SCHEDULE, 1000, generator, clip=False)
    torch.testing.assert_close(x_0, x.double(), atol=2e-3, rtol=0)


def test_zero_terminal_snr() -> None:
    betas = linear(1000)
    rescale: Any = scheduling_ddim.rescale_zero_terminal_snr
    torch.testing.assert_close(with_zero_terminal_snr(betas), rescale(betas), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("prediction", "name"), [("eps", "epsilon"), ("v", "v_prediction"), ("x_0", "sample")]
)
def test_forward_process_and_predictions(prediction: Literal["eps", "v", "x_0"], name: str) -> None:
    scheduler = in_float64(scheduler_of("DDPMScheduler", prediction_type=name, clip_sample=False))
    objective = make_objective(
        Config(
            root="corpus", run="run", schedule="linear", prediction=prediction, weighting="min-snr"
        )
    )
    generator = torch.Generator().manual_seed(3)
    x_0, eps, output = torch.randn(3, 8, 3, 4, 4, generator=generator)
    t = torch.linspace(0, 999, 8).long()
    x_t = objective.q_sample(x_0, t, eps)
    expected = scheduler.add_noise(x_0.double(), eps.double(), t).float()
    torch.testing.assert_close(x_t, expected, atol=1e-6, rtol=0)

    losses = objective.per_sample_loss(lambda _x_t, _t: output, x_0, t, eps)
    velocity = scheduler.get_velocity(x_0.double(), eps.double(), t)
    target = {"eps": eps, "v": velocity, "x_0": x_0}[prediction]
    # The weight as diffusers' training scripts write it, for each prediction.
    compute_snr: Any = training_utils.compute_snr
    snr = compute_snr(scheduler, t)
    weight = snr.clamp(max=5) / {"eps": snr, "v": snr + 1, "x_0": 1}[prediction]
    error = (output - target).square().flatten(1).mean(1)
    torch.testing.assert_close(
        losses.weighted.double(), (weight * error).double(), rtol=1e-4, atol=0
    )

    pictures = objective.denoise(lambda _x_t, _t: output)(x_t, t)
    for i, step in enumerate(t):
        answer = scheduler.step(output[i].double(), step, x_t[i].double()).pred_original_sample
        torch.testing.assert_close(pictures[i], answer.float(), rtol=1e-4, atol=1e-4)
