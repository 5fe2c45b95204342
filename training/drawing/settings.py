"""How pictures are drawn: the settings that `sample` and `evaluate` share. No torch here."""

from typing import Annotated, Literal

from pydantic import Field

from infra.config import EXECUTION_ONLY, StageConfig

SamplerName = Literal["ddpm", "ddpm-large-variance", "ddim", "dpm++", "heun"]


class DrawSettings(StageConfig):
    sampler: SamplerName = "ddpm"
    """ddpm is the paper's, with its smaller variance; ddim needs fewer steps, dpm++ and heun
    the fewest."""
    num_steps: int | None = Field(None, ge=1)
    """Sampling steps; none: as many as the model was trained with."""
    negative: str = ""
    """What the pictures should keep away from: it takes the place of the empty caption in
    guidance."""
    rescale: float = Field(0.0, ge=0, le=1)
    """How far guidance's stronger contrast is taken back: 0 not at all, 1 wholly; 0.7 where
    pictures come out glaring."""
    seed: int = Field(0, ge=0)
    """Another seed, other pictures. A picture follows from the seed and its number alone."""
    checkpoint: int | None = None
    """The step of the checkpoint to use; none: the newest."""
    batch_size: Annotated[int, EXECUTION_ONLY] = Field(64, ge=1)
    """Pictures drawn at once; it changes them by rounding only."""
    device: Annotated[str, EXECUTION_ONLY] = "auto"
    """cpu, cuda, or auto: a GPU where one is."""
