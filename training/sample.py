"""Pictures from captions: DDPM's Algorithm 2 with classifier-free guidance.

Reads   RUN/run.json, the averaged weights of RUN's newest checkpoint or the one named
Writes  a PNG grid, a row a caption, and if asked a strip of the pictures on their way out of the
        noise. Captions, seed, checkpoint and settings stand in the PNG's text.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import InputError
from infra.progress import track
from infra.summary import Stopwatch, Summary

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from training.samplers import Step

NUM_STRIP_FRAMES = 10


class Config(StageConfig):
    """Draw pictures for captions with a trained model."""

    run: Annotated[Place, POSITIONAL]
    """The training run."""
    captions: Annotated[tuple[str, ...], POSITIONAL] = ()
    """What to draw; each caption is a row of the grid."""
    output: str = "samples.png"
    """The PNG to write: a path or URL."""
    strip: str | None = None
    """Also write a PNG of each caption's first picture from step T to step 1."""
    num_images: int = Field(4, ge=1)
    """Pictures a caption."""
    guidance_scale: float = Field(3.0, ge=0)
    """How far the caption pulls: 1 is the plain conditional model, 0 ignores the caption."""
    num_steps: int | None = Field(None, ge=1)
    """Sampling steps; none: as many as the model was trained with."""
    sampler: Literal["ddpm", "ddpm-large-variance", "ddim"] = "ddpm"
    """ddpm is the paper's, with its smaller variance; ddim needs fewer steps."""
    seed: int = Field(0, ge=0)
    """Another seed, other pictures."""
    checkpoint: int | None = None
    """The step of the checkpoint to use; none: the newest."""
    batch_size: Annotated[int, EXECUTION_ONLY] = Field(64, ge=1)
    """Pictures drawn at once."""
    device: Annotated[str, EXECUTION_ONLY] = "auto"
    """cpu, cuda, or auto: a GPU where one is."""


def run(config: Config) -> Summary:
    from training.model import load_model
    from training.sheet import draw_grid, draw_strip

    captions = _captions(config)
    with Stopwatch() as watch:
        model = load_model(config.run, config.checkpoint, config.device)
        num_steps = config.num_steps or model.schedule.num_timesteps
        wanted = [caption for caption in captions for _ in range(config.num_images)]
        frames = Frames(num_steps)
        num_batches = -(-len(wanted) // config.batch_size)
        with track("sample", num_batches * num_steps, "steps") as bar:

            def on_step(step: "Step") -> None:
                bar.advance(1)
                frames.add(step)

            images = model.draw(
                wanted,
                num_steps=num_steps,
                sampler=config.sampler,
                guidance_scale=config.guidance_scale,
                seed=config.seed,
                batch_size=config.batch_size,
                on_step=on_step,
            )
        about = config.model_dump(exclude={"output", "strip", "batch_size", "device"})
        about |= {"checkpoint": model.step, "num_steps": num_steps}
        step = config.num_images
        rows = [images[i * step : (i + 1) * step] for i in range(len(captions))]
        outputs = {"grid": _publish_png(config.output, draw_grid(captions, rows), about)}
        if config.strip is not None:
            strips = [frames.of(i * step) for i in range(len(captions))]
            sheet = draw_strip(captions, strips, frames.timesteps)
            outputs["strip"] = _publish_png(config.strip, sheet, about)
    return Summary(
        stage="sample",
        num_in=len(wanted),
        num_out=len(images),
        unit="pictures",
        counts={"captions": len(captions)},
        seconds=watch.seconds,
        outputs=outputs,
        details=about,
    )


class Frames:
    """The pictures after `NUM_STRIP_FRAMES` of the steps, evenly spaced, the first and last too."""

    def __init__(self, num_steps: int) -> None:
        num = min(NUM_STRIP_FRAMES, num_steps)
        self._wanted = {round(i * (num_steps - 1) / max(num - 1, 1)) for i in range(num)}
        self._batches: list[list[Tensor]] = []
        self.timesteps: list[int] = []
        """The paper's t of each frame: T first, 1 last."""

    def add(self, step: "Step") -> None:
        if step.index == 0:
            self._batches.append([])
            self.timesteps.clear()
        if step.index in self._wanted:
            self._batches[-1].append(step.x.cpu())
            self.timesteps.append(step.timestep + 1)

    def of(self, picture: int) -> "list[Tensor]":
        """The frames of the picture at this place, `[3, S, S]` each."""
        for batch in self._batches:
            if picture < len(batch[0]):
                return [frame[picture] for frame in batch]
            picture -= len(batch[0])
        raise IndexError(picture)


def _captions(config: Config) -> tuple[str, ...]:
    if not config.captions:
        raise InputError(
            f'no captions: expected at least one, as in `carrara sample {config.run} "a cat"`'
        )
    if any(not caption.strip() for caption in config.captions):
        raise InputError(
            "a caption is empty: expected words; to draw without any, "
            "--guidance-scale 0 ignores the caption"
        )
    return config.captions


def _publish_png(url: str, image: "Image", about: dict[str, Any]) -> str:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for name, value in about.items():
        text.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
    with storage.publish(url) as path:
        image.save(path, format="PNG", pnginfo=text)
    return url
