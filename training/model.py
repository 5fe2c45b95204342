"""A trained model: a run's averaged weights, ready to draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infra.errors import InputError
from training.config import Config
from training.diffusion import Objective, make_objective
from training.guidance import guided
from training.layers import Backbone
from training.network import make_network
from training.order import Purpose, random
from training.samplers import SAMPLERS, Generators, OnStep, noise
from training.schedule import Schedule
from training.space import Space, UpscaleSpace, conditioned, make_space
from training.text import Captions, make_captions


@dataclass(frozen=True)
class TrainedModel:
    config: Config
    """That it was trained with."""
    step: int
    """Of the checkpoint."""
    network: Backbone
    objective: Objective
    space: Space
    captions: Captions
    device: torch.device

    @property
    def schedule(self) -> Schedule:
        return self.objective.schedule

    def draw(
        self,
        captions: Sequence[str],
        *,
        num_steps: int,
        sampler: str,
        guidance_scale: float,
        seed: int,
        batch_size: int,
        first: int = 0,
        small: Tensor | None = None,
        augmentation: float = 0.0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """A picture a caption, `[n, 3, S, S]` in [-1, 1] on the CPU.

        The noise of the i-th follows from (seed, first + i): what is drawn beside it, and how much
        at once, changes a picture by rounding only. A super-resolution stage enlarges `small`
        (`[n, 3, s, s]` in [-1, 1]), noised to `augmentation`.
        """
        images = []
        for start in range(0, len(captions), batch_size):
            tokens, mask = self.captions.encode(captions[start : start + batch_size])
            generators = picture_generators(seed, first + start, len(tokens))
            blank = torch.empty(len(tokens), *self._shape, device=self.device)
            x_T = noise(blank, generators)
            given = None
            if small is not None:
                rows = small[start : start + batch_size].to(self.device)
                given = self._condition(rows, augmentation, generators)
            network = conditioned(self.network, given)
            x_0 = SAMPLERS[sampler](
                self.objective.denoise(guided(network, tokens, mask, guidance_scale)),
                x_T,
                self.schedule,
                num_steps,
                generators,
                on_step=on_step,
            )
            images.append(self.space.pictures(x_0).cpu())
        return torch.cat(images)

    @property
    def _shape(self) -> tuple[int, int, int]:
        side = self.config.image_size // self.space.shape.downscale
        return self.space.shape.channels, side, side

    def _condition(self, small: Tensor, augmentation: float, generators: Generators) -> Tensor:
        assert isinstance(self.space, UpscaleSpace)
        levels = torch.full((len(small),), augmentation, device=self.device)
        return self.space.condition(small, levels, noise(small, generators))


def picture_generators(seed: int, first: int, num: int) -> Generators:
    """One a picture, on the CPU, so that the noise is the same whatever the network runs on."""
    seeds = [
        int(random(seed, Purpose.SAMPLING, i).integers(2**62)) for i in range(first, first + num)
    ]
    return [torch.Generator().manual_seed(one) for one in seeds]


def chosen_step(run: str, step: int | None) -> int:
    """Of the checkpoint asked for, or the newest. Raises InputError where there is none."""
    from training import checkpoint
    from training.record import read_record

    config = read_record(run).config
    steps = checkpoint.complete_steps(run)
    if not steps:
        raise InputError(
            f"{run}: no checkpoint yet; let `carrara train` reach its first (every "
            f"{config.checkpoint_every} steps)"
        )
    return steps[-1] if step is None else step


def load_model(run: str, step: int | None = None, device: str = "auto") -> TrainedModel:
    """The model of a checkpoint; `step` None is the newest. Raises InputError where none is."""
    from training import checkpoint
    from training.record import read_record

    config = read_record(run).config
    found = checkpoint.load(run, chosen_step(run, step), ("ema",))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    captions = make_captions(config, place)
    space = make_space(config, place)
    weights = {name: weight.to(place) for name, weight in found.parts["ema"].items()}
    return model_of(config, found.step, weights, captions, space)


def model_of(
    config: Config, step: int, weights: dict[str, Tensor], captions: Captions, space: Space
) -> TrainedModel:
    """On the weights' device; they are shared, not copied."""
    device = next(iter(weights.values())).device
    with torch.device("meta"):
        network = make_network(config, captions.width)
    network.load_state_dict(weights, assign=True)
    return TrainedModel(
        config=config,
        step=step,
        network=network.eval(),
        objective=make_objective(config, device),
        space=space,
        captions=captions,
        device=device,
    )
