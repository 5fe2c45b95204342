"""An exponential moving average of a network's weights, the ones to sample with."""

import torch
from torch import Tensor, nn

from training.parallel import WHOLE, Layout, local


class EMA:
    """`weights <- decay * weights + (1 - decay) * parameters`, kept in float32.

    With `warmup` the decay ramps up as min(decay, (1 + n) / (10 + n)) over the updates n, as
    TensorFlow's ExponentialMovingAverage does with `num_updates`: otherwise the random initial
    weights weigh on a short run (0.9999 remembers 10,000 steps). The paper's has none.

    Of sharded weights each worker averages its own rows.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.num_updates = 0
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().float().clone()
            for name, parameter in module.named_parameters()
        }

    def decay_now(self) -> float:
        if not self.warmup:
            return self.decay
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        assert parameters.keys() == self.weights.keys()
        averages = [local(weight) for weight in self.weights.values()]
        current = [local(parameters[name]).float() for name in self.weights]
        torch._foreach_lerp_(averages, current, 1 - self.decay_now())
        self.num_updates += 1

    def load(self, weights: dict[str, Tensor], num_updates: int, layout: Layout = WHOLE) -> None:
        """`weights` are whole, whatever part of them this worker holds."""
        assert weights.keys() == self.weights.keys()
        for name, weight in weights.items():
            local(self.weights[name]).copy_(layout.rows(weight))
        self.num_updates = num_updates
