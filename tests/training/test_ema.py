import pytest
import torch
from torch import nn

from training.ema import EMA


def constant(value: float) -> nn.Linear:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def test_average_of_a_constant_has_its_closed_form() -> None:
    layer = constant(0.0)
    ema = EMA(layer, decay=0.9)
    ema.num_updates = 10_000  # past the ramp
    nn.init.constant_(layer.weight, 1.0)
    for _ in range(20):
        ema.update(layer)
    assert ema.weights["weight"][0, 0].item() == pytest.approx(1 - 0.9**20, rel=1e-5)
    assert ema.weights["bias"][0].item() == 0


def test_ramp_forgets_the_initial_weights() -> None:
    layer = constant(100.0)
    ema = EMA(layer, decay=0.9999)
    nn.init.constant_(layer.weight, 1.0)
    expected = 100.0
    for n in range(200):
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay)
        ema.update(layer)
    assert ema.weights["weight"][0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert expected < 1.01


def test_loaded_average_goes_on_like_the_saved_one() -> None:
    layer, ema, other = constant(3.0), EMA(constant(1.0), 0.99), EMA(constant(0.0), 0.99)
    ema.update(layer)
    other.load(ema.weights, num_updates=1)
    ema.update(layer)
    other.update(layer)
    assert torch.equal(other.weights["weight"], ema.weights["weight"])
    assert other.num_updates == 2
