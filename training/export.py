"""A run's checkpoint as a folder that diffusers loads, its own code included.

Reads   RUN/run.json, RUN/checkpoints, the text encoder; ROOT/manifest.json for the data manifest
Writes  OUT/network/ text_encoder/ scheduler/ pipeline.py README.md data.json; model_index.json last

    DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True)

`carrara train --init-from OUT` starts a run from its weights.
"""

from typing import Annotated, Literal

from pydantic import Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ConflictError
from infra.summary import Stopwatch, Summary


class Config(StageConfig):
    """Write a checkpoint as a folder that diffusers loads."""

    run: Annotated[Place, POSITIONAL]
    """The training run."""
    out: Annotated[Place, POSITIONAL]
    """The folder or URL to write."""
    checkpoint: int | None = Field(None, ge=0)
    """The step of the checkpoint; none: the newest."""
    weights: Literal["ema", "model"] = "ema"
    """The averaged weights, which draw better, or those that training goes on with."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace what is there."""


def run(config: Config) -> Summary:
    from training import checkpoint
    from training.exporting.folder import publish_folder
    from training.model import chosen_step
    from training.record import read_record

    if (names := storage.list_names(config.out)) and not config.overwrite:
        raise ConflictError(
            f"{config.out}: not empty (it holds {names[0]!r}); give another folder, or --overwrite"
        )
    with Stopwatch() as watch:
        record = read_record(config.run)
        found = checkpoint.load(
            config.run, chosen_step(config.run, config.checkpoint), (config.weights,)
        )
        storage.remove(config.out)
        publish_folder(config.out, record, found.step, found.parts[config.weights], config.weights)
    num_parameters = sum(weight.numel() for weight in found.parts[config.weights].values())
    return Summary(
        stage="export",
        num_in=1,
        num_out=1,
        unit="checkpoints",
        seconds=watch.seconds,
        outputs={"folder": config.out},
        details={
            "checkpoint": found.step,
            "weights": config.weights,
            "num_parameters": num_parameters,
        },
    )
