"""A Carrara run as a pipeline of diffusers: pictures from captions."""

from typing import Any, ClassVar

import numpy as np
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image


# Silenced below: as in modeling.py.
class CarraraPipeline(DiffusionPipeline):  # type: ignore[misc, unused-ignore]
    """`pipeline("a cat").images`

    By `scheduler`, which any of diffusers' schedulers can take the place of; or with `sampler` by
    Carrara's own, whose tables are in float64: then the pictures are those of `carrara sample` with
    that seed. The noise of picture i follows from (seed, i) alone.
    """

    _optional_components: ClassVar = ["text_encoder"]
    model_cpu_offload_seq = "text_encoder->network"

    network: Any
    scheduler: Any
    text_encoder: Any

    def __init__(self, network: Any, scheduler: Any, text_encoder: Any = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        parts = {"network": network, "scheduler": scheduler, "text_encoder": text_encoder}
        self.register_modules(**parts)  # type: ignore[attr-defined, unused-ignore]

    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """`options` go to Carrara's `draw`, where `sampler` names one; `output_type` is "pil", "np"
        ([n, H, W, 3] in 0..1) or "pt" ([n, 3, H, W] in -1..1)."""
        self._check_is_given(sampler, options)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        captions = [one for one in prompts for _ in range(num_images_per_prompt)]
        if sampler is None:
            if options:
                raise ValueError(f"{', '.join(options)}: only with a sampler of Carrara's")
            drawn = self.network.draw_by_scheduler(
                self.text_encoder,
                self.scheduler,
                captions,
                num_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                seed=seed,
            )
        else:
            drawn = self.network.model(self.text_encoder).draw(
                captions,
                num_steps=num_inference_steps,
                sampler=sampler,
                guidance_scale=guidance_scale,
                seed=seed,
                **({"batch_size": 64} | options),
            )
        images = drawn
        if output_type != "pt":
            images = ((drawn.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            pixels = (images * 255).round().astype(np.uint8)
            images = [Image.fromarray(picture) for picture in pixels]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_is_given(self, sampler: str | None, options: dict[str, Any]) -> None:
        """What a super-resolution stage enlarges: none of diffusers' schedulers takes it along."""
        side = self.network.settings.space.upscale_from
        if side is not None and (sampler is None or options.get("small") is None):
            raise ValueError(
                f"this model enlarges pictures of {side} pixels: expected sampler= one of "
                f"Carrara's, and small= the pictures, [n, 3, {side}, {side}] in -1..1"
            )
