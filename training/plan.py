"""What a corpus and a model would take, before any of it runs: hours, dollars, cores, bytes.

Reads   a cluster's description and measured rates (TOML), if given; with --achieved ROOT/runs/ and
        RUN/metrics.jsonl
Writes  the rates, with --calibrate

    carrara plan --pairs 5.85e9 --cluster infra/deploy/ray/aws.plan.toml
    carrara plan --calibrate --rates rates.toml --pairs 1e6
    carrara plan ROOT --run RUN --achieved --rates rates.toml
"""

import uuid
from typing import Annotated, Literal

from pydantic import Field

from infra import storage
from infra.config import POSITIONAL, Place, StageConfig
from infra.errors import ConfigError, ConflictError
from infra.planning.failures import LINK_ROT_PER_MONTH
from infra.planning.fleet import read_fleet, this_machine
from infra.planning.rates import Rates, read_rates
from infra.summary import Stopwatch, Summary
from infra.watching.events import tell


class Config(StageConfig):
    root: Annotated[Place | None, POSITIONAL] = None
    """A corpus: its counts are taken in place of `pairs`, its runs with `achieved`."""
    run: Place | None = None
    """A training run, with `achieved`."""
    achieved: bool = False
    """Hold what was predicted against what ROOT's and RUN's commands took, on `cluster`."""
    cluster: Place | None = None
    """A description of machines and store (TOML, see docs/plan.md); none: this machine."""
    rates: Place | None = None
    """Rates that were measured (TOML); none: defaults, with their sources in docs/plan.md."""
    calibrate: bool = False
    """Measure them here, in under a minute, and write them to `rates`."""
    overwrite: bool = False
    """With calibrate: replace the rates that are there."""

    pairs: float | None = Field(default=None, ge=1)
    """Pairs of URL and caption to begin with, such as 5.85e9."""
    image_size: int = Field(default=256, ge=8)
    """Side in pixels that pictures are stored at."""
    success_share: float = Field(default=0.85, gt=0, le=1)
    """Of links as young as the list: those that give a usable picture."""
    age_months: float = Field(default=0.0, ge=0)
    """Between the list's making and the download."""
    link_rot_per_month: float = Field(default=LINK_ROT_PER_MONTH, ge=0, lt=1)
    """Links that die in a month."""
    fetched_kb: float = Field(default=120.0, gt=0)
    """Kilobytes of a picture on the web, in the mean."""
    samples_per_shard: int = Field(default=10_000, ge=1)
    """Rows of the list in a shard."""
    kept_share: float = Field(default=0.5, gt=0, le=1)
    """Of the pictures: those that the policy keeps."""

    encoder: str = "ViT-B-32"
    """The model for embeddings: open_clip's name, or a folder."""
    recall: float = Field(default=0.95, gt=0, le=1)
    """Recall@10, by words, that the index is to reach."""

    network: Literal["unet", "uvit"] = "uvit"
    """The denoiser, as for train."""
    size: Literal["S", "B", "L", "XL"] | None = "B"
    """Its shape by name."""
    train_size: int = Field(default=64, ge=8)
    """Side in pixels that is trained at."""
    batch_size: int = Field(default=2048, ge=1)
    """Pictures a step."""
    epochs: float = Field(default=1.0, gt=0)
    """How often training sees what was kept."""

    seed: int = 0
    """Of the simulation of losses."""


NOTHING_SAID = Config()


def run(config: Config = NOTHING_SAID) -> Summary:
    with Stopwatch() as watch:
        fleet = this_machine() if config.cluster is None else read_fleet(config.cluster)
        rates = _rates(config)
        if config.achieved:
            from training.planning.achieved import compared

            summary = compared(config, fleet, rates)
        elif config.calibrate and config.pairs is None and config.root is None:
            summary = Summary(stage="plan", num_in=0, num_out=0, unit="pairs")
        else:
            from training.planning.shown import planned

            summary = planned(config, fleet, rates)
    if config.calibrate:
        summary.outputs["rates"] = str(config.rates)
    summary.details["rates"] = rates.model_dump()
    summary.seconds = watch.seconds
    return summary


def _rates(config: Config) -> Rates:
    if not config.calibrate:
        return Rates() if config.rates is None else read_rates(config.rates)
    if config.rates is None:
        raise ConfigError("--calibrate without --rates: say what file the rates are written to")
    _check_place(config.rates, overwrite=config.overwrite)
    import tomli_w

    from training.planning.calibration import calibrate
    from training.planning.making import train_config

    rates = calibrate(config.encoder, train_config(config), config.image_size, _say)
    storage.publish_text(config.rates, tomli_w.dumps(rates.model_dump()))
    return rates


def _check_place(url: str, *, overwrite: bool) -> None:
    """Before a minute is spent. Raises ConflictError where rates are, StorageError where none can
    be written."""
    if storage.exists(url) and not overwrite:
        raise ConflictError(
            f"--rates {url}: is there already; --overwrite measures anew and replaces it, without "
            "--calibrate it is used as it is"
        )
    trial = f"{url}.{uuid.uuid4().hex[:8]}"
    storage.publish_text(trial, "")
    storage.remove(trial)


def _say(line: str) -> None:
    tell("note", f"plan: {line}")
