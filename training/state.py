"""What a run is at a step: the weights, their average and the optimizer's moments, whole in each
worker or in shards."""

import torch
from torch import Tensor, nn

from training import checkpoint
from training.checkpoint import Checkpoint, Tensors
from training.config import Config
from training.ema import EMA
from training.parallel import Layout, whole


class State:
    def __init__(self, config: Config, model: nn.Module, layout: Layout) -> None:
        """`model`: as `parallel.shard` left it."""
        self.model, self.layout = model, layout
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = EMA(model, config.ema_decay, config.ema_warmup)
        self.step = 0
        """Optimizer steps taken."""

    def advance(self, learning_rate: float, clip_norm: float) -> Tensor:
        """A step along the gradients that the parameters have; returns the gradients' norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        limit = clip_norm or torch.inf
        grad_norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        return grad_norm

    def parts(self) -> dict[str, Tensors]:
        """As a checkpoint has them, of this worker's shard."""
        return {
            "model": dict(self.model.named_parameters()),
            "ema": self.ema.weights,
            "optimizer": checkpoint.optimizer_tensors(self.model, self.optimizer),
        }

    def load(self, found: Checkpoint) -> None:
        self.step = found.step
        checkpoint.load_weights(self.model, found.parts["model"], self.layout)
        self.ema.load(found.parts["ema"], found.step, self.layout)
        moments = found.parts["optimizer"]
        checkpoint.load_optimizer_tensors(self.model, self.optimizer, moments, self.layout)

    def averaged_weights(self) -> Tensors:
        """Whole, to draw with; all workers have to ask."""
        return {name: whole(weight) for name, weight in self.ema.weights.items()}
