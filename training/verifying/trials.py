"""Short training runs as a user starts them, by the command line, and what is done to them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import tomli_w

import training
from infra import storage
from infra.errors import ShortfallError
from training.checkpoint import complete_steps
from training.log import read_events
from training.record import read_record
from training.verify_resume import Config
from training.verifying.killing import kill_process, wait_until_gone

POLL_EVERY_S = 0.02
PATIENCE_S = 900.0
"""For a trial to reach its next checkpoint."""
SMALL: dict[str, Any] = {
    "image_size": 16,
    "unet": {"channels": 16, "channel_mults": [1, 2], "num_res_blocks": 1, "dropout": 0.1},
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 10,
    "max_failures": 10,
}
"""A network of which a step takes about 30 milliseconds on a CPU."""
NOT_OF_A_TRIAL = {"root", "run", "workers", "watch", "overwrite", "num_steps", "max_failures"}


@dataclass(frozen=True)
class Kind:
    name: str
    strikes: Callable[["Trial"], "Struck"]
    applies: Callable[[Config], bool]
    same_count: bool = True
    """Of workers, as the undisturbed trial."""


@dataclass(frozen=True)
class Struck:
    """After which checkpoints something was killed."""

    what: str = ""
    steps: list[int] = field(default_factory=list)

    def told(self) -> str:
        if not self.steps:
            return "-"
        return f"{self.what} after {', '.join(map(str, self.steps))}"


def settings_of_trials(config: Config) -> dict[str, Any]:
    """Those of `carrara train`, the same for every trial but for the workers' number."""
    if config.like is not None:
        there = read_record(config.like).config
        chosen = there.model_dump(mode="json", exclude=NOT_OF_A_TRIAL, exclude_none=True)
    else:
        chosen = SMALL | {"encoder": config.encoder}
    return chosen | {
        "num_steps": config.num_steps,
        "checkpoint_every": config.checkpoint_every,
        "log_every": 1,
        "keep_last": 3,
        "max_failures": 2 * config.num_kills,
        "workers": config.workers.model_dump(mode="json", exclude_none=True),
        "watch": {"held_out_every": 0, "grid_every": 0},
    }


class Trial:
    def __init__(self, config: Config, kind: Kind, settings: dict[str, Any]) -> None:
        self.config, self.kind = config, kind
        self.settings = settings
        if not kind.same_count:
            self.settings = settings | {"workers": settings["workers"] | {"num_workers": 1}}
        self.url = storage.join(config.scratch, kind.name.replace(" ", "-"))
        self.random = Random(f"{config.seed} {kind.name}")

    def run(self) -> Struck:
        return self.kind.strikes(self)

    @contextmanager
    def job(self) -> Iterator[subprocess.Popen[bytes]]:
        """`carrara train` in a process group of its own; whoever starts it looks how it ends."""
        with tempfile.TemporaryDirectory(prefix="carrara-") as folder:
            file, log = Path(folder) / "train.toml", Path(folder) / "log"
            file.write_text(tomli_w.dumps({"train": self.settings}), encoding="utf-8")
            command = [sys.executable, "-m", "carrara", "train", self.config.root, self.url]
            home = str(Path(training.__file__).parents[1])
            paths = [home, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*command, "--config", str(file)],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            try:
                yield process
                if process.wait() not in {0, -signal.SIGKILL}:
                    lines = log.read_text(errors="replace").strip().splitlines()
                    raise ShortfallError(
                        f"{self.url}: the trial {self.kind.name!r} ended with exit code "
                        f"{process.returncode}: {lines[-1] if lines else 'no word'}"
                    )
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def wait_for_a_moment(self, process: subprocess.Popen[bytes], after: int) -> int | None:
        """Until a random moment in the middle: some checkpoints later than `after`, and then a
        part of the time that one takes. Returns the newest checkpoint's step; None: it ended."""
        last = self.config.num_steps // self.config.checkpoint_every
        passed = after // self.config.checkpoint_every
        goal = self.random.randint(passed + 1, max(passed + 1, last - 2))
        started, deadline = None, time.monotonic() + PATIENCE_S
        while process.poll() is None:
            steps = complete_steps(self.url)
            now = time.monotonic()
            if steps and started is None:
                started = now
            if steps and steps[-1] >= goal * self.config.checkpoint_every:
                time.sleep(self.random.random() * min(1.0, (now - (started or now)) / goal))
                return steps[-1]
            if now > deadline:
                raise ShortfallError(
                    f"{self.url}: no checkpoint of step {goal * self.config.checkpoint_every} in "
                    f"{PATIENCE_S:.0f} s; lower --checkpoint-every or --num-steps"
                )
            time.sleep(POLL_EVERY_S)
        return None


def _undisturbed(trial: Trial) -> Struck:
    with trial.job():
        return Struck()


def _workers_killed(trial: Trial) -> Struck:
    """Ray Train replaces them within the same job."""
    steps: list[int] = []
    with trial.job() as process:
        for _ in range(trial.config.num_kills):
            step = trial.wait_for_a_moment(process, steps[-1] if steps else 0)
            if step is None:
                break
            num_starts = len(_starts(trial.url))
            victim = trial.random.choice(_starts(trial.url)[-1]["workers"])
            if kill_process(victim["host"], victim["pid"], trial.config.workers):
                steps.append(step)
                _wait_for_start(trial.url, process, num_starts)
    return checked(trial, Struck("a worker", steps))


def _job_killed(trial: Trial) -> Struck:
    """All of its processes at once; the same command then goes on."""
    steps: list[int] = []
    for _ in range(trial.config.num_kills):
        with trial.job() as process:
            step = trial.wait_for_a_moment(process, steps[-1] if steps else 0)
            if step is None:
                break
            workers = _starts(trial.url)[-1]["workers"]
            os.killpg(process.pid, signal.SIGKILL)
        steps.append(step)
        wait_until_gone(workers, trial.config.workers)
    with trial.job():
        pass
    return checked(trial, Struck("the job", steps))


def checked(trial: Trial, struck: Struck) -> Struck:
    """Raises ShortfallError for a trial that shows nothing: its run had to go on after a kill."""
    if not struck.steps:
        why = "ended before anything could be killed"
    elif not any(start["event"] == "resume" for start in _starts(trial.url)):
        why = "was struck when nothing was left to go on with"
    else:
        return struck
    raise ShortfallError(
        f"{trial.url}: the trial {trial.kind.name!r} {why}; raise --num-steps, which is "
        f"{trial.config.num_steps}"
    )


def _starts(run: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] in {"start", "resume"}]


def _wait_for_start(run: str, process: subprocess.Popen[bytes], num_starts: int) -> None:
    while process.poll() is None and len(_starts(run)) == num_starts:
        time.sleep(POLL_EVERY_S)


def _on_ray(config: Config) -> bool:
    return not config.workers.local


def _always(_config: Config) -> bool:
    return True


def _by_several(config: Config) -> bool:
    return _on_ray(config) and (config.workers.num_workers or 1) > 1


TRIALS = (
    Kind("undisturbed", _undisturbed, _always),
    Kind("workers killed", _workers_killed, _on_ray),
    Kind("job killed", _job_killed, _always),
    Kind("one worker", _undisturbed, _by_several, same_count=False),
)
