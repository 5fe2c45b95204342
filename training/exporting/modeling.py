"""The denoiser of a Carrara run, as diffusers loads it, and how it draws.

The files beside this one are Carrara's own (Apache-2.0); this one and they need torch, numpy and
diffusers alone.
"""

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from training.diffusion import make_objective
from training.exporting.settings import settings_of
from training.guidance import guided
from training.model import TrainedModel, picture_generators
from training.network import make_network
from training.samplers import noise
from training.space import make_space
from training.text import CaptionEncoder, CaptionTokens


# Silenced below: diffusers has types in part, and for lazily loaded classes stand-ins of others.
class CarraraDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """`(x_t, t, text_tokens, text_mask) -> eps, v or x_0`, as `config.settings` say."""

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(self, settings: dict[str, Any], text_width: int, step: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.step = step
        self.settings = settings_of(settings)
        self.backbone = make_network(self.settings, text_width)

    def forward(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        output: Tensor = self.backbone(x_t, t, text_tokens, text_mask)
        return output

    def model(self, text_tower: Any) -> TrainedModel:
        """As Carrara's own `sample` has it; `text_tower` None where the denoiser reads itself."""
        settings, device = self.settings, self.device
        captions = (
            CaptionTokens(settings.text.width, settings.text.context_length, device)
            if text_tower is None
            else CaptionEncoder(text_tower, device)
        )
        return TrainedModel(
            config=settings,
            step=self.step,
            network=self.backbone.to(memory_format=torch.channels_last).eval(),
            objective=make_objective(settings, device),
            space=make_space(settings, device),
            captions=captions,
            device=device,
        )

    @torch.no_grad()
    def draw_by_scheduler(
        self,
        text_tower: Any,
        scheduler: Any,
        captions: list[str],
        num_steps: int,
        guidance_scale: float,
        seed: int,
    ) -> Tensor:
        """As `TrainedModel.draw`, by one of diffusers' schedulers."""
        model = self.model(text_tower)
        tokens, mask = model.captions.encode(captions)
        network = guided(model.network, tokens, mask, guidance_scale)
        generators = picture_generators(seed, 0, len(captions))
        shape = model.space.shape
        side = self.settings.image_size // shape.downscale
        x = noise(
            torch.empty(len(captions), shape.channels, side, side, device=self.device), generators
        )
        scheduler.set_timesteps(num_steps, device=self.device)
        x = x * scheduler.init_noise_sigma
        takes_generator = "generator" in scheduler.step.__code__.co_varnames
        options = {"generator": generators} if takes_generator else {}
        for t in scheduler.timesteps:
            x_t = scheduler.scale_model_input(x, t)
            output = network(x_t, t.expand(len(x))).float()
            x = scheduler.step(output, t, x, **options).prev_sample
        return model.space.pictures(x).cpu()
