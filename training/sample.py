"""Pictures from captions: DDPM's Algorithm 2 or a quicker sampler, with classifier-free guidance.

    carrara sample RUN "a cat" "a red heart" --output x.png --strip strip.png --animation x.webp
    carrara sample RUN --captions-file list.parquet --layout shards --output SAMPLES

Reads   RUN/run.json, the averaged weights of RUN's newest checkpoint or the one named; captions
Writes  as a grid: a PNG with a row a caption, drawn in this process, and if asked the pictures on
        their way out of the noise, as a strip or moving
        as files or shards: a set of any size, drawn by workers (training/drawing/sets.py)

Captions, seed, checkpoint and settings stand in every PNG's text.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from infra import storage
from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, digest_of
from infra.errors import ConfigError, InputError
from infra.progress import track
from infra.summary import Stopwatch, Summary
from training.drawing.settings import DrawSettings

if TYPE_CHECKING:
    from torch import Tensor

    from training.config import Config as TrainConfig
    from training.drawing.frames import Frames
    from training.drawing.request import Request
    from training.drawing.wanted import Wanted
    from training.samplers import Step
    from training.streaming.shapes import Shape

NUM_STRIP_FRAMES = 10
NUM_ANIMATION_FRAMES = 48
"""Three seconds."""
GRID_NAME, SET_NAME = "samples.png", "samples"


class Config(DrawSettings):
    """Draw pictures for captions with a trained model."""

    run: Annotated[Place, POSITIONAL]
    """The training run."""
    captions: Annotated[tuple[str, ...], POSITIONAL] = ()
    """What to draw; each caption is a row of the grid."""
    captions_file: Annotated[Place | None, EXECUTION_ONLY] = None
    """More captions: a .txt with one a line, or a .csv, .jsonl or .parquet."""
    caption_column: str = "caption"
    """Where the captions of a .csv, .jsonl or .parquet stand."""
    output: Annotated[str | None, EXECUTION_ONLY] = None
    """What to write, a path or URL: the grid's PNG, or the folder of a set; none: samples.png, or
    samples."""
    layout: Literal["grid", "files", "shards"] = "grid"
    """One PNG with a row a caption; or a PNG a picture; or a corpus of PNGs in WebDataset shards.
    The last two go on where they were stopped."""
    strip: Annotated[str | None, EXECUTION_ONLY] = None
    """Also write a PNG of each caption's first picture from step T to step 1."""
    animation: Annotated[str | None, EXECUTION_ONLY] = None
    """Also write these first pictures coming out of the noise: a .gif, .webp or .apng."""
    num_images: int = Field(4, ge=1)
    """Pictures a caption."""
    aspect_ratio: float = Field(1.0, gt=0)
    """Width over height: the nearest of the shapes that the run was trained in, where those are
    more than the square (its data.max_aspect_ratio)."""
    guidance_scale: float = Field(3.0, ge=0)
    """How far the caption pulls: 1 is the plain conditional model, 0 ignores the caption."""
    init_image: Annotated[Place | None, EXECUTION_ONLY] = None
    """A picture to begin from instead of noise."""
    strength: float = Field(0.7, gt=0, le=1)
    """How much of the way from noise is gone again from `init_image`: 1 leaves nothing of it."""
    mask: Annotated[Place | None, EXECUTION_ONLY] = None
    """A picture of the same shape, white where `init_image` is to be drawn anew, black where it
    stays as it is."""
    num_resamples: int = Field(0, ge=0)
    """How often each step inside a mask is repeated for what is drawn to fit what stays: 10 is
    RePaint's number, ten times the work, with its own ancestral sampler."""
    small: Annotated[Place | None, EXECUTION_ONLY] = None
    """For a super-resolution stage: the pictures to enlarge, a folder or corpus that `sample` drew;
    their captions are the captions."""
    augmentation: float = Field(0.0, ge=0, le=1)
    """How far the small pictures are noised first, for what is wrong with them to be forgotten."""
    samples_per_shard: int = Field(1000, ge=1, le=10_000)
    """Pictures of a set that a worker draws at a time."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """Who draws a set; each takes a GPU where the cluster has some."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace a set of other captions or settings."""


def run(config: Config) -> Summary:
    _check(config)
    with Stopwatch() as watch:
        wanted = _wanted(config)
        request = make_request(config)
        num_pictures = num_now = len(wanted.captions)
        if config.layout == "grid":
            outputs = _draw_grid(config, request, wanted)
        else:
            outputs = {"pictures": storage.absolute(config.output or SET_NAME)}
            num_now = _draw_set(config, request, wanted, outputs["pictures"])
    return Summary(
        stage="sample",
        num_in=num_pictures,
        num_out=num_pictures,
        unit="pictures",
        counts={"captions": len(wanted.rows)}
        | ({} if num_now == num_pictures else {"drawn now": num_now}),
        seconds=watch.seconds,
        outputs=outputs,
        details=request.about(),
    )


def make_request(config: Config) -> "Request":
    """With the newest checkpoint and the model's own number of steps where none is named."""
    from training import checkpoint
    from training.drawing.request import Request
    from training.model import chosen_step
    from training.record import read_record

    trained = read_record(config.run).config
    step = chosen_step(config.run, config.checkpoint)
    files = checkpoint.load(config.run, step, ()).manifest.sha256
    return Request(
        run=config.run,
        checkpoint=step,
        weights=digest_of({name: one for name, one in files.items() if name.startswith("ema")}),
        sampler=config.sampler,
        num_steps=config.num_steps or trained.num_timesteps,
        guidance_scale=config.guidance_scale,
        negative=config.negative,
        rescale=config.rescale,
        seed=config.seed,
        batch_size=config.batch_size,
        device=config.device,
        init_image=_read(config.init_image),
        strength=config.strength,
        mask=_read(config.mask),
        num_resamples=config.num_resamples,
        augmentation=config.augmentation,
        shape=_shape(config, trained),
    )


def _shape(config: Config, trained: "TrainConfig") -> "Shape | None":
    """To draw in; None: the square."""
    import numpy as np

    from training.streaming.shapes import nearest_shapes, shapes_for

    data, ratio = trained.data, config.aspect_ratio
    if ratio == 1:
        return None
    most = 1.0 if trained.space.upscale_from else data.max_aspect_ratio
    if not 1 / most <= ratio <= most:
        raise ConfigError(
            f"--aspect-ratio {ratio:g}: expected from {1 / most:g} to {most:g}, the shapes that "
            f"{config.run} draws (data.max_aspect_ratio of its training; a super-resolution stage "
            "draws squares)"
        )
    shapes = shapes_for(trained.image_size, data.max_aspect_ratio, data.side_multiple)
    return shapes[int(nearest_shapes(np.array([ratio]), np.array([1.0]), shapes)[0])]


def _check(config: Config) -> None:
    is_grid = config.layout == "grid"
    for name in ("strip", "animation"):
        if getattr(config, name) is not None and not is_grid:
            raise ConfigError(f"--{name}: shows a grid's pictures; expected --layout grid with it")
    if config.mask is not None and config.init_image is None:
        raise ConfigError(
            f"--mask {config.mask}: says where to draw a picture anew; expected --init-image with "
            "it, that picture"
        )
    if config.animation is not None:
        from training.drawing.animation import check_name

        check_name(config.animation)


def _wanted(config: Config) -> "Wanted":
    from training.drawing.captions import checked, read_captions
    from training.drawing.wanted import Wanted

    if config.small is not None:
        if config.captions or config.captions_file:
            raise ConfigError(
                f"--small {config.small}: its pictures bring their captions; expected no others"
            )
        return Wanted.enlarged(config.run, config.small)
    captions = checked(config.captions, "captions") if config.captions else []
    if config.captions_file is not None:
        captions += read_captions(config.captions_file, config.caption_column)
    if not captions:
        raise InputError(
            f'no captions: expected at least one, as in `carrara sample {config.run} "a cat"`, or '
            "--captions-file"
        )
    return Wanted.repeated(captions, config.num_images)


def _read(url: str | None) -> bytes | None:
    """A picture's file; that it is one is seen before anything is drawn."""
    if url is None:
        return None
    from retrieval.encoding.pictures import decode_picture

    try:
        data = storage.read_bytes(url)
        decode_picture(data)
    except FileNotFoundError:
        raise InputError(f"{url}: no such picture") from None
    except InputError as error:
        raise InputError(f"{url}: {error}") from None
    return data


def _draw_grid(config: Config, request: "Request", wanted: "Wanted") -> dict[str, str]:
    from training.drawing.animation import publish_animation
    from training.drawing.frames import Frames
    from training.drawing.png import png_bytes
    from training.sheet import draw_grid, draw_strip

    captions, num = wanted.rows, wanted.num_each
    firsts = range(0, len(wanted.captions), num)
    strip = Frames(NUM_STRIP_FRAMES if config.strip else 0, firsts)
    moving = Frames(NUM_ANIMATION_FRAMES if config.animation else 0, firsts)
    images = _draw(request, wanted, [strip, moving])
    about: dict[str, Any] = {"captions": captions, **request.about()}
    rows = [images[start : start + num] for start in firsts]
    outputs = {"grid": config.output or GRID_NAME}
    storage.publish_bytes(outputs["grid"], png_bytes(draw_grid(captions, rows), about))
    if config.strip is not None:
        sheet = draw_strip(captions, strip.by_picture(), strip.timesteps)
        storage.publish_bytes(config.strip, png_bytes(sheet, about))
        outputs["strip"] = config.strip
    if config.animation is not None:
        sheets = [draw_grid(captions, [[x] for x in step]) for step in moving.by_step()]
        outputs["animation"] = publish_animation(config.animation, sheets)
    return outputs


def _draw(request: "Request", wanted: "Wanted", watchers: "list[Frames]") -> "Tensor":
    """In this process, with a bar that goes by sampling steps."""
    from training.drawing.request import draw
    from training.model import load_model

    model = load_model(request.run, request.checkpoint, request.device)
    beginning = request.beginning(model.config.image_size)
    num_steps = model.num_steps_taken(request.num_steps, beginning)
    num_batches = -(-len(wanted.captions) // request.batch_size)
    with track("sample", num_batches * num_steps, "steps") as bar:

        def on_step(step: "Step") -> None:
            bar.advance(1)
            for watcher in watchers:
                watcher.add(step, num_steps, model.space.pictures)

        return draw(model, request, wanted.captions, small=wanted.small, on_step=on_step)


def _draw_set(config: Config, request: "Request", wanted: "Wanted", output: str) -> int:
    from training.drawing.sets import PictureSet, draw_set

    assert config.layout != "grid"
    pictures = PictureSet(output, config.layout, request, wanted, config.samples_per_shard)
    return draw_set(pictures, config.workers, overwrite=config.overwrite)
