"""How near each sampler comes to the exact picture, by evaluations of the network.

    python -m benchmarks.samplers                half a minute

The network is the optimal one, in closed form, so that every error is the sampler's: for pictures
that are Gaussian, and for emoji (8x8 pixels, blurred by noise of 0.2). The flow of each has one
picture for every x_T; the error is the median over pictures of the root mean square distance to it
(Gaussian: exact, emoji: Heun in 2000 steps; a mean would count little but the few pictures that end
at another emoji). Ancestral sampling draws its own noise; of it the standard deviation over all
pictures is shown. diffusers' DPM-Solver++ stands beside ours with the spacings that it offers, on
the same network.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import processor
from benchmarks.objective import read_pictures
from training.diffusion import Denoise
from training.samplers import SAMPLERS
from training.schedule import Schedule, make_schedule

EVALUATIONS = (6, 10, 20, 40, 80)
OURS = {"ddim": 1, "dpm++": 1, "heun": 2}
"""Evaluations a step."""
PEERS: dict[str, dict[str, Any]] = {
    "diffusers DPM++, default": {},
    "diffusers DPM++, Karras": {"use_karras_sigmas": True},
    "diffusers DPM++, log-SNR": {"use_lu_lambdas": True},
}
ANCESTRAL = ("ddpm", "ddpm-large-variance")
MEAN, STD = 0.3, 0.5
BLUR = 0.2
NUM = 128
REFERENCE_STEPS = 2000

Data = Callable[[Schedule], Denoise]
"""The optimal denoiser of some data."""


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    emoji = F.interpolate(read_pictures()[::7], size=8, mode="area").double()
    print(processor())
    for name in ("linear", "cosine"):
        schedule = make_schedule(name, 1000)
        x_T = torch.randn(NUM, 3, 8, 8, generator=generator(), dtype=torch.float64)
        show(f"{name}, Gaussian", name, gaussian, x_T, exact_end(x_T, schedule))
        fine = make_schedule(name, 10 * REFERENCE_STEPS)
        data = blurred(emoji)
        end = SAMPLERS["heun"](data(fine), x_T, fine, REFERENCE_STEPS, generator(), clip=False)
        show(f"{name}, emoji", name, data, x_T, end)
        print(f"\n{name}, Gaussian: std of what is drawn, {STD} of what should be")
        for sampler in ANCESTRAL:
            stds = [spread(sampler, schedule, num) for num in (*EVALUATIONS, 250, 1000)]
            print(f"{sampler:28}" + "".join(f"{std:9.4f}" for std in stds))


def show(title: str, name: str, data: Data, x_T: Tensor, end: Tensor) -> None:
    schedule = make_schedule(name, 1000)
    print(f"\n{title + ': evaluations':28}" + "".join(f"{num:9}" for num in EVALUATIONS))
    for sampler, per_step in OURS.items():
        drawn = [
            SAMPLERS[sampler](
                data(schedule), x_T, schedule, num // per_step, generator(), clip=False
            )
            for num in EVALUATIONS
        ]
        print(row(sampler, drawn, end))
    for peer, settings in PEERS.items():
        drawn = [theirs(data(schedule), x_T, name, num, settings) for num in EVALUATIONS]
        print(row(peer, drawn, end))


def row(title: str, drawn: list[Tensor], end: Tensor) -> str:
    errors = [(one - end).flatten(1).square().mean(1).sqrt().median().item() for one in drawn]
    return f"{title:28}" + "".join(f"{error:9.4f}" for error in errors)


def theirs(
    denoise: Denoise, x: Tensor, name: str, num_steps: int, settings: dict[str, Any]
) -> Tensor:
    from diffusers import schedulers

    make: Any = schedulers.DPMSolverMultistepScheduler
    scheduler = make(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[name],
        prediction_type="sample",
        **settings,
    )
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)  # looked up, it is the second where a timestep is visited twice
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t.long().expand(len(x))), t, x).prev_sample
    return x


def gaussian(schedule: Schedule) -> Denoise:
    """Of N(MEAN, STD^2)."""
    abar = schedule.alphas_cumprod

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, variance = abar[t[0]].sqrt(), abar[t[0]] * STD**2 + 1 - abar[t[0]]
        return MEAN + a * STD**2 / variance * (x_t - a * MEAN)

    return denoise


def exact_end(x_T: Tensor, schedule: Schedule) -> Tensor:
    """The flow leaves every pixel at its quantile."""
    abar = schedule.alphas_cumprod[-1]
    return MEAN + STD * (x_T - abar.sqrt() * MEAN) / (abar * STD**2 + 1 - abar).sqrt()


def blurred(pictures: Tensor) -> Data:
    """Of these pictures plus noise of BLUR."""
    flat = pictures.flatten(1)

    def data(schedule: Schedule) -> Denoise:
        abar = schedule.alphas_cumprod

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            a, variance = abar[t[0]].sqrt(), abar[t[0]] * BLUR**2 + 1 - abar[t[0]]
            x = x_t.flatten(1)
            likelihood = -torch.cdist(x, a * flat).square() / (2 * variance)
            nearest = likelihood.softmax(1) @ flat
            return (nearest + a * BLUR**2 / variance * (x - a * nearest)).view_as(x_t)

        return denoise

    return data


def spread(sampler: str, schedule: Schedule, num_steps: int) -> float:
    x_T = torch.randn(1, 1, 200, 250, generator=generator(1))
    sample = SAMPLERS[sampler]
    x_0 = sample(gaussian(schedule), x_T, schedule, num_steps, generator(2), clip=False)
    return x_0.std().item()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    main()
