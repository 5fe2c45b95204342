"""For `carrara doctor`: the training's mathematics on the device that will train, against closed
forms. Pictures drawn from N(0, s^2) have an optimal denoiser that can be written down; a device, a
build of torch or a change of code that computes it wrongly shows here within seconds.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from infra.checks.finding import Finding, Subject, broken, ok
from training.config import Config
from training.diffusion import Network, Objective, make_objective
from training.samplers import ddpm

S = 0.5
"""The pictures' standard deviation."""
SIDE = 8
NUM_PICTURES, NUM_SAMPLED = 16_384, 1024
ADVICE = "don't train on this device: run the tests, try another torch or driver, report what fails"

ALPHAS_CUMPROD_999 = 4.03583e-5
"""The linear schedule's last (Ho et al. 2020, section 4: "close to 0")."""
LOSS_FLOOR = 0.173053
"""Mean over t of abar s^2 / (abar s^2 + 1 - abar): the least that any network can reach."""
SAMPLED_STD = 0.49611
"""Of Algorithm 2 with the optimal denoiser and the smaller variance; 0.50075 with the larger."""
LOSS_TOLERANCE, STD_TOLERANCE = 0.01, 0.007
"""Relative. Chance moves the loss of a million numbers by 0.3% and the deviation of 65,536 by
0.3%; the two variances are 0.9% apart."""
FLOAT32_TOLERANCE = 1e-4
BF16_TOLERANCE = 2**-7
"""bfloat16 has 8 bits of mantissa, and products are summed in float32."""


def check(_subject: Subject) -> Iterator[Finding]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other would take most of the time
    try:
        yield from _check()
    finally:
        torch.set_num_threads(num_threads)


def _check() -> Iterator[Finding]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Config(root="", run="", schedule="linear", prediction="eps")
    objective = make_objective(config, device)
    found = float(objective.schedule.alphas_cumprod[-1])
    yield _held("schedule", "alphas_cumprod_999", found, ALPHAS_CUMPROD_999, 1e-5)
    yield _held(
        f"loss on {device.type}", "mean", _loss(objective, device), LOSS_FLOOR, LOSS_TOLERANCE
    )
    found = _sampled_std(objective, device)
    yield _held(f"sampling on {device.type}", "deviation", found, SAMPLED_STD, STD_TOLERANCE)
    yield _exact(f"gradients on {device.type}", _gradient_error(device), FLOAT32_TOLERANCE)
    yield _exact(f"bfloat16 on {device.type}", _bfloat16_error(device), BF16_TOLERANCE)


def _held(name: str, what: str, found: float, expected: float, tolerance: float) -> Finding:
    said = f"{what} {found:.6g}, by closed form {expected:.6g}"
    is_near = abs(found / expected - 1) <= tolerance  # False for a NaN
    return ok(name, said) if is_near else broken(name, said, ADVICE)


def _exact(name: str, error: float, tolerance: float) -> Finding:
    said = f"relative error {error:.1e} against float64, at most {tolerance:.1e}"
    return ok(name, said) if error <= tolerance else broken(name, said, ADVICE)


def _loss(objective: Objective, device: torch.device) -> float:
    generator = torch.Generator(device).manual_seed(0)
    shape = (NUM_PICTURES, 1, SIDE, SIDE)
    x_0 = S * torch.randn(shape, generator=generator, device=device)
    eps = torch.randn(shape, generator=generator, device=device)
    # Every timestep as often as every other, where chance would add to the error.
    t = torch.arange(NUM_PICTURES, device=device) * 1000 // NUM_PICTURES
    losses = objective.per_sample_loss(_optimal(objective), x_0, t, eps)
    return float(losses.simple.mean())


def _sampled_std(objective: Objective, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn((NUM_SAMPLED, 1, SIDE, SIDE), generator=generator).to(device)
    denoise = objective.denoise(_optimal(objective))
    x_0 = ddpm(denoise, x_T, objective.schedule, 1000, generator, clip=False)
    return float(x_0.std())


def _optimal(objective: Objective) -> Network:
    """E[eps | x_t] for pictures from N(0, s^2): sqrt(1 - abar) x_t / (abar s^2 + 1 - abar)."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        rates = objective.rates(t, x_t.ndim)
        optimal: Tensor = rates.noise * x_t / ((rates.signal * S).square() + rates.noise.square())
        return optimal

    return network


def _gradient_error(device: torch.device) -> float:
    """Of a convolution's and an attention's gradient in float32, against the CPU's in float64."""

    def gradient(where: torch.device, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((2, 8, 8, 8), generator=generator, dtype=torch.float64)
        kernel = torch.randn((8, 8, 3, 3), generator=generator, dtype=torch.float64) / 8
        x, kernel = x.to(where, dtype), kernel.to(where, dtype).requires_grad_()
        hidden = torch.nn.functional.conv2d(x, kernel, padding=1).flatten(2).transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        torch.autograd.backward(out.square().mean())
        assert kernel.grad is not None
        return kernel.grad.cpu().double()

    with torch.backends.cudnn.flags(allow_tf32=False):
        found = gradient(device, torch.float32)
    expected = gradient(torch.device("cpu"), torch.float64)
    return float((found - expected).norm() / expected.norm())


def _bfloat16_error(device: torch.device) -> float:
    """Of a product of matrices in bfloat16, with float32 around it, as training computes it."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((256, 256), generator=generator) / math.sqrt(16) for _ in range(2))
    with torch.autocast(device.type, torch.bfloat16):
        found = (a.to(device) @ b.to(device)).float().cpu()
    expected = a.double() @ b.double()
    return float((found - expected).norm() / expected.norm())
