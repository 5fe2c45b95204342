"""The loss on pictures that are never trained on, whole and by timestep.

Always the same pictures at the same timesteps with the same noise, so that from look to look, and
from run to run, nothing differs but the weights. The same is asked of as many training pictures:
where the two drift apart, the network learns its pictures by heart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.model import TrainedModel
from training.order import Purpose, random
from training.space import Draw, conditioned
from training.watching.examples import Example

NUM_BINS = 10
"""Of t, equally wide: the loss at small t is of fine detail, at large t of the whole."""
BATCH_SIZE = 64
SEED = 0
"""Not the run's: runs of other seeds are compared too."""


@dataclass(frozen=True)
class LossByTimestep:
    loss: float
    """L_simple, the mean over t: comparable to the log's."""
    loss_by_t: list[float]
    """Its mean over each of `NUM_BINS` parts of 0..T-1."""


@torch.no_grad()
def loss_by_timestep(
    model: TrainedModel, examples: Sequence[Example], num_evaluations: int
) -> LossByTimestep:
    """At timesteps that are spread evenly over 0..T-1; where pictures are fewer than evaluations,
    they come again at other ones."""
    order = random(SEED, Purpose.HELD_OUT).permutation(num_evaluations)
    num_timesteps = model.schedule.num_timesteps
    t = torch.from_numpy((2 * order + 1) * num_timesteps // (2 * num_evaluations))
    losses = []
    for start in range(0, num_evaluations, BATCH_SIZE):
        places = range(start, min(start + BATCH_SIZE, num_evaluations))
        batch = [examples[place % len(examples)] for place in places]
        losses.append(_losses(model, batch, t[start : places.stop], start))
    loss = torch.cat(losses).double().cpu()
    bins = t * NUM_BINS // num_timesteps
    return LossByTimestep(
        loss=loss.mean().item(),
        loss_by_t=[loss[bins == i].mean().item() for i in range(NUM_BINS)],
    )


def _losses(model: TrainedModel, batch: Sequence[Example], t: Tensor, first: int) -> Tensor:
    """L_simple of each, `[len(batch)]`; `first` numbers the noise."""
    device = model.device
    pixels = torch.stack([example.pixels for example in batch]).to(device)
    # Drawn on the CPU: the same noise on any device.
    seed = int(random(SEED, Purpose.HELD_OUT, first + 1).integers(2**62))
    generator = torch.Generator().manual_seed(seed)
    of_device = torch.Generator(device).manual_seed(seed)
    x_0, condition = model.space.targets(pixels, Draw(of_device, len(batch), slice(0, len(batch))))
    eps = torch.randn(x_0.shape, generator=generator).to(device)
    tokens, mask = model.captions.encode([example.caption for example in batch])
    denoiser = conditioned(model.network, condition)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return denoiser(x_t.contiguous(memory_format=torch.channels_last), t, tokens, mask)

    return model.objective.per_sample_loss(network, x_0, t.to(device), eps).simple
