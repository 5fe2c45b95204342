"""Does a run that is struck go on exactly where it was? Shown on this machine, or on your cluster.

Reads   ROOT; the settings of a run, if one is named
Writes  SCRATCH/<trial>/, each a short training run, removed afterwards unless they are to be kept

Each trial trains the same few steps: undisturbed; with workers killed (SIGKILL) at random moments;
with the whole job killed and started again; and by another number of workers. A run that was struck
must log the same samples and the same losses, bit for bit, and end in the same weights, byte for
byte; another number of workers must meet the same samples.
"""

from typing import Annotated

from pydantic import Field

from infra import storage
from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ConflictError
from infra.progress import track
from infra.summary import Stopwatch, Summary

EMBEDDED_ENCODER = "Carrara-S/emoji_clipart"


class Config(StageConfig):
    """Kill short training runs and show that they resume exactly."""

    root: Annotated[Place, POSITIONAL]
    """The corpus to train on."""
    scratch: Annotated[Place, POSITIONAL]
    """An empty folder or URL that all machines share, for the trial runs."""
    like: Annotated[Place | None, EXECUTION_ONLY] = None
    """A training run whose settings to try; none: a small network."""
    num_steps: int = Field(120, ge=10)
    """Steps of each trial; they should last some seconds, so that it can be struck on the way."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between checkpoints."""
    num_kills: int = Field(2, ge=1)
    """How often workers, or the job, are killed in a trial."""
    seed: int = Field(0, ge=0)
    """Decides when, and which worker."""
    encoder: str = EMBEDDED_ENCODER
    """The text tower of the small network."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers(num_workers=2)
    """Who trains; with `local` one process without Ray, of which only the job can be killed."""
    keep: Annotated[bool, EXECUTION_ONLY] = False
    """Leave the trial runs in SCRATCH."""


def run(config: Config) -> Summary:
    from training.verifying.comparison import compare, read_trace
    from training.verifying.trials import TRIALS, Trial, settings_of_trials

    if names := storage.list_names(config.scratch):
        raise ConflictError(
            f"{config.scratch}: not empty (it holds {names[0]!r}); give an empty place"
        )
    settings = settings_of_trials(config)
    rows: list[dict[str, object]] = []
    faults = []
    with Stopwatch() as watch:
        trials = [kind for kind in TRIALS if kind.applies(config)]
        with track("verify-resume", len(trials), "trials") as bar:
            undisturbed = None
            for kind in trials:
                trial = Trial(config, kind, settings)
                struck = trial.run()
                trace = read_trace(trial.url, config.num_steps)
                undisturbed = undisturbed or trace
                found = compare(trace, undisturbed, same_count=kind.same_count)
                rows.append({"trial": kind.name, "killed": struck.told(), **found.row()})
                faults += [f"{kind.name}: {fault}" for fault in found.faults]
                bar.advance(1)
        if not config.keep:
            storage.remove(config.scratch)
    return Summary(
        stage="verify-resume",
        num_in=len(rows),
        num_out=len(rows) - len({fault.split(":")[0] for fault in faults}),
        unit="trials",
        seconds=watch.seconds,
        outputs={"trials": config.scratch} if config.keep else {},
        table=rows,
        shortfall="; ".join(faults),
    )
