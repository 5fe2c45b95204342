"""The fused optimizer goes by memory: weights, gradients and moments must lie there alike."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from training import loop
from training.config import Config, UViTConfig
from training.parallel import WHOLE, Worker
from training.record import RunRecord
from training.state import State

UVIT = UViTConfig(channels=(16,), num_res_blocks=1, width=32, num_layers=1, head_width=16)
TRAINED_TEXT = {"trained": True, "width": 16, "num_layers": 1, "num_heads": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {},
    "uvit that reads": {"network": "uvit", "uvit": UVIT, "text": TRAINED_TEXT},
}


@pytest.fixture(params=NETWORKS)
def trainer(
    request: pytest.FixtureRequest,
    tiny_config: Callable[..., Config],
    record_of: Callable[[Config], RunRecord],
) -> loop.Trainer:
    config = tiny_config(learning_rate=1e-2, warmup_steps=0, **NETWORKS[request.param])
    trainer = loop.Trainer(record_of(config), Worker.current())
    trainer.resume()
    return trainer


def places(tensor: Tensor) -> Tensor:
    """Its elements' numbers in the order in which they lie in memory."""
    numbers = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.int64)
    numbers.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return numbers.as_strided((tensor.numel(),), (1,))


def take_steps(trainer: loop.Trainer, num: int) -> None:
    for _ in range(num):
        trainer.train_step(trainer.stream.batch(trainer.state.step, trainer.positions))


def test_weights_gradients_moments_and_averages_lie_alike(trainer: loop.Trainer) -> None:
    take_steps(trainer, 1)
    state = trainer.state
    assert state.optimizer.defaults["fused"]
    parameters = dict(trainer.model.named_parameters())
    # Else there would be nothing to get wrong.
    assert any(not parameter.is_contiguous() for parameter in parameters.values())
    for name, parameter in parameters.items():
        moments = state.optimizer.state[parameter]
        given = {"gradient": parameter.grad, "average": state.ema.weights[name]}
        for what, tensor in {**given, **moments}.items():
            if what != "step":
                assert tensor is not None
                assert torch.equal(places(tensor), places(parameter)), (name, what)


def test_fused_steps_are_those_of_the_plain_loop(trainer: loop.Trainer) -> None:
    """AdamW as torch writes it in Python, a parameter at a time, from the same gradients."""
    model, fused = trainer.model, trainer.state
    twin = State(trainer.config, plain_copy(model), WHOLE)
    for group in twin.optimizer.param_groups:
        group |= {"fused": False, "foreach": False}
    for _ in range(3):
        take_steps(trainer, 1)
        for own, theirs in zip(twin.model.parameters(), model.parameters(), strict=True):
            assert theirs.grad is not None
            own.grad = theirs.grad.contiguous()
        rate = loop.learning_rate(trainer.config, fused.step - 1)
        twin.advance(rate, clip_norm=0)  # the gradients are clipped already
    ours, plain = fused.parts(), twin.parts()
    for part, tensors in plain.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(ours[part][name], tensor, atol=1e-6, rtol=1e-4)


def plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """In the usual order of memory, where nothing can be mistaken for another place."""
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def test_fused_steps_are_wrong_where_gradients_lie_otherwise() -> None:
    """Why it matters: torch does not look. Should it learn to, the care taken here can go."""
    weights = [torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last) for _ in range(2)]
    gradient = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for weight, fused in zip(weights, (True, False), strict=True):
        weight.grad = gradient.clone()  # contiguous, as no backward pass of ours leaves it
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=fused)
        optimizer.step()
    assert not torch.allclose(weights[0], weights[1])
