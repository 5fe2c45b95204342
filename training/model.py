"""A trained model: a run's averaged weights, ready to draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infra.errors import InputError
from retrieval.encoding.encoder import load_encoder
from training import checkpoint
from training.config import Config
from training.diffusion import Objective, make_objective
from training.record import read_record
from training.samplers import SAMPLERS, OnStep, guided
from training.schedule import Schedule
from training.text import CaptionEncoder
from training.unet import IMAGE_CHANNELS, UNet


@dataclass(frozen=True)
class TrainedModel:
    config: Config
    """That it was trained with."""
    step: int
    """Of the checkpoint."""
    unet: UNet
    objective: Objective
    captions: CaptionEncoder
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
        on_step: OnStep | None = None,
    ) -> Tensor:
        """A picture a caption, `[n, 3, S, S]` in [-1, 1] on the CPU."""
        size = self.config.image_size
        generator = torch.Generator().manual_seed(seed)
        images = []
        for start in range(0, len(captions), batch_size):
            tokens, mask = self.captions.encode(captions[start : start + batch_size])
            x_T = torch.randn(len(tokens), IMAGE_CHANNELS, size, size, generator=generator)
            network = guided(self.unet, tokens, mask, guidance_scale)
            x_0 = SAMPLERS[sampler](
                self.objective.denoise(network),
                x_T.to(self.device),
                self.schedule,
                num_steps,
                generator,
                on_step=on_step,
            )
            images.append(x_0.clamp(-1, 1).cpu())
        return torch.cat(images)


def load_model(run: str, step: int | None = None, device: str = "auto") -> TrainedModel:
    """The model of a checkpoint; `step` None is the newest. Raises InputError where none is."""
    config = read_record(run).config
    steps = checkpoint.complete_steps(run)
    if not steps:
        raise InputError(
            f"{run}: no checkpoint yet; let `carrara train` reach its first (every "
            f"{config.checkpoint_every} steps)"
        )
    found = checkpoint.load(run, steps[-1] if step is None else step, ("ema",))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    captions = CaptionEncoder(load_encoder(config.encoder, device), place)
    unet = UNet(config.unet, config.image_size, captions.width)
    unet.load_state_dict(found.parts["ema"])
    return TrainedModel(
        config=config,
        step=found.step,
        unet=unet.to(place).eval(),
        objective=make_objective(config, place),
        captions=captions,
        device=place,
    )
