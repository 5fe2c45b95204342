"""A trained model: a run's averaged weights, ready to draw."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infra.errors import InputError
from training.config import Config
from training.diffusion import Network, Objective, make_objective
from training.editing import from_picture, keeping, repaint
from training.guidance import guided
from training.layers import Backbone
from training.network import make_network
from training.order import Purpose, random
from training.samplers import SAMPLERS, Generators, OnStep, noise
from training.schedule import Schedule
from training.space import Draw, Space, UpscaleSpace, conditioned, make_space
from training.text import Captions, make_captions


@dataclass(frozen=True)
class Beginning:
    """A picture to begin from instead of noise."""

    pixels: Tensor
    """uint8 `[3, H, W]`."""
    strength: float
    """The share of the way from noise that is gone again; 1 begins from noise alone."""
    anew: Tensor | None = None
    """bool `[H, W]`: where to draw; elsewhere the picture stays as it is."""
    num_resamples: int = 0
    """How often a step is repeated, for what is drawn to fit what is kept (`repaint`); 0: it is
    only held in its place (`keeping`)."""


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
        shape: tuple[int, int] | None = None,
        negative: str = "",
        rescale: float = 0.0,
        begin: Beginning | None = None,
        small: Tensor | None = None,
        augmentation: float = 0.0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """A picture a caption, `[n, 3, H, W]` in [-1, 1] on the CPU; `shape` is H and W, none: the
        square.

        The noise of the i-th follows from (seed, first + i): what is drawn beside it, and how much
        at once, changes a picture by rounding only. A super-resolution stage enlarges `small`
        (`[n, 3, s, s]` in [-1, 1]), noised to `augmentation`.
        """
        images = []
        for start in range(0, len(captions), batch_size):
            rows = slice(start, start + batch_size)
            generators = picture_generators(seed, first + start, len(captions[rows]))
            blank = torch.empty(len(generators), *self._shape_of_x(shape), device=self.device)
            x_T = noise(blank, generators)
            given = None
            if small is not None:
                given = self._condition(small[rows].to(self.device), augmentation, generators)
            network = self._guided(captions[rows], given, guidance_scale, negative, rescale)
            x_0 = self._sample(network, x_T, sampler, num_steps, generators, begin, on_step)
            images.append(self.space.pictures(x_0).cpu())
        return torch.cat(images)

    def num_steps_taken(self, num_steps: int, begin: Beginning | None) -> int:
        """How many a sampler takes that begins from a picture: `on_step` is told of so many."""
        if begin is None or begin.strength == 1:
            return num_steps
        return max(1, round(begin.strength * num_steps))

    def _sample(
        self,
        network: Network,
        x_T: Tensor,
        sampler: str,
        num_steps: int,
        generators: Generators,
        begin: Beginning | None,
        on_step: OnStep | None,
    ) -> Tensor:
        denoise, schedule, sample = (
            self.objective.denoise(network),
            self.schedule,
            SAMPLERS[sampler],
        )
        if begin is not None:
            picture = self._encoded(begin.pixels).expand_as(x_T)
            if begin.strength < 1:
                x_T, schedule, num_steps = from_picture(
                    picture, begin.strength, schedule, num_steps, generators
                )
            if begin.anew is not None:
                kept = self._kept(begin.anew)
                if begin.num_resamples:
                    sample = functools.partial(
                        repaint, picture=picture, mask=kept, num_resamples=begin.num_resamples
                    )
                else:
                    denoise = keeping(denoise, picture, kept)
        with self._autocast():
            return sample(
                denoise,
                x_T,
                schedule,
                num_steps,
                generators,
                on_step=on_step,
                clip=self.space.clips,
            )

    def _guided(
        self,
        captions: Sequence[str],
        condition: Tensor | None,
        guidance_scale: float,
        negative: str,
        rescale: float,
    ) -> Network:
        """The network with everything bound to it but x_t and t."""
        num = len(captions)
        tokens, mask = self.captions.encode([*captions, negative] if negative else captions)
        against = None
        if negative:
            against = (tokens[num:].expand_as(tokens[:num]), mask[num:].expand_as(mask[:num]))
        return guided(
            conditioned(self.network, condition),
            tokens[:num],
            mask[:num],
            guidance_scale,
            negative=against,
            rescale=rescale,
        )

    def _shape_of_x(self, shape: tuple[int, int] | None) -> tuple[int, int, int]:
        """C, h, w of what the network draws."""
        height, width = shape or (self.config.image_size, self.config.image_size)
        downscale = self.space.shape.downscale
        return self.space.shape.channels, height // downscale, width // downscale

    def _condition(self, small: Tensor, augmentation: float, generators: Generators) -> Tensor:
        assert isinstance(self.space, UpscaleSpace)
        levels = torch.full((len(small),), augmentation, device=self.device)
        return self.space.condition(small, levels, noise(small, generators))

    def _encoded(self, pixels: Tensor) -> Tensor:
        """A picture where the network draws, `[1, C, h, w]`."""
        draw = Draw(torch.Generator(self.device).manual_seed(0), 1, slice(0, 1))
        x_0, _ = self.space.targets(pixels[None].to(self.device), draw)
        return x_0

    def _kept(self, anew: Tensor) -> Tensor:
        """1 where the picture stays, `[1, 1, h, w]`; what is drawn in part is drawn whole."""
        drawn = anew[None, None].float().to(self.device)
        return 1 - torch.nn.functional.max_pool2d(drawn, self.space.shape.downscale)

    def _autocast(self) -> torch.autocast:
        """The network's arithmetic, as in training; the samplers' own stays in float32."""
        precision, device = self.config.precision, self.device.type
        enabled = precision == "bfloat16" or (precision == "auto" and device == "cuda")
        return torch.autocast(device, torch.bfloat16, enabled=enabled)


def picture_generators(seed: int, first: int, num: int) -> list[torch.Generator]:
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
    """On the weights' device; they are shared, not copied, where they lie in channels-last."""
    device = next(iter(weights.values())).device
    with torch.device("meta"):
        network = make_network(config, captions.width)
    network.load_state_dict(weights, assign=True)
    return TrainedModel(
        config=config,
        step=step,
        network=network.to(memory_format=torch.channels_last).eval(),
        objective=make_objective(config, device),
        space=space,
        captions=captions,
        device=device,
    )
