"""The `paper` preset against Ho et al. 2020 (section 4, appendix B) and its code."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from training import sample
from training.config import Config
from training.diffusion import make_objective
from training.loop import learning_rate
from training.network import make_network
from training.parallel import WHOLE
from training.samplers import SAMPLERS
from training.state import State

PAPER: dict[str, Any] = tomllib.loads(
    (Path(__file__).parents[2] / "infra" / "configs" / "paper.toml").read_text()
)


def paper(**changes: Any) -> Config:
    return Config(root="corpus", run="run", **(PAPER["train"] | changes))


def test_paper_trains_on_algorithm_1() -> None:
    objective = make_objective(paper())
    betas = objective.schedule.betas
    assert len(betas) == 1000
    assert (betas[0].item(), betas[-1].item()) == pytest.approx((1e-4, 0.02))
    generator = torch.Generator().manual_seed(0)
    x_0, eps, output = torch.randn(3, 4, 3, 8, 8, generator=generator)
    t = torch.tensor([0, 10, 500, 999])
    losses = objective.per_sample_loss(lambda _x_t, _t: output, x_0, t, eps)
    torch.testing.assert_close(losses.weighted, (output - eps).square().mean((1, 2, 3)))


def test_paper_optimises_as_its_appendix_says() -> None:
    config = paper()
    small = paper(unet=config.unet.model_copy(update={"channels": 8}))
    state = State(small, make_network(small, 8), WHOLE)
    assert isinstance(state.optimizer, torch.optim.AdamW)
    group = state.optimizer.param_groups[0]
    assert group["weight_decay"] == 0
    assert group["betas"] == (0.9, 0.999)
    assert group["eps"] == 1e-8
    assert state.ema.decay_now() == 0.9999  # from the first step on
    assert (config.batch_size, config.num_steps) == (128, 800_000)
    assert (config.image_size, config.horizontal_flip) == (32, True)
    rates = [learning_rate(config, step) for step in (0, 2499, 4999, 5000, 799_999)]
    assert rates == pytest.approx([2e-4 / 5000, 1e-4, 2e-4, 2e-4, 2e-4])


def test_paper_samples_by_algorithm_2_with_the_large_variance() -> None:
    config = sample.Config(run="run", captions=("a cat",), **PAPER["sample"])
    assert SAMPLERS[config.sampler] is SAMPLERS["ddpm-large-variance"]
    assert config.num_steps is None  # as many as the model was trained with
    assert config.guidance_scale == 1


def test_papers_network_is_the_papers_but_for_how_time_and_text_enter() -> None:
    with torch.device("meta"):
        network = make_network(paper(), 512)
    ours = ("text", "query", "key_value", "modulation", "conditioning")
    shared = sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if not any(part in name for part in ours)
    )
    # The paper's: the time embedding of 128 through two layers of 512, and from there a linear
    # layer into each residual block, 5 of 128 channels and 17 of 256.
    time = (128 + 1) * 512 + (512 + 1) * 512 + (512 + 1) * (5 * 128 + 17 * 256)
    assert shared + time == 35_746_307  # "35.7 million parameters"
