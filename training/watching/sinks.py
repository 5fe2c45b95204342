"""Where a run's figures and pictures go beside its own files: TensorBoard, wandb, MLflow.

Writes  RUN/tensorboard/, RUN/wandb/, RUN/mlflow.db and mlflow-artifacts/, or whatever servers the
        environment names (WANDB_*, MLFLOW_TRACKING_URI)

A run that goes on after a crash goes on in the same place, by an id of its own; steps that it takes
again replace those it had logged (TensorBoard) or stand beside them (wandb, MLflow). A server that
fails on the way is told of and no longer written to: it never ends a training.
"""

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from infra import storage
from infra.config import digest_of
from infra.errors import ConfigError
from training.config import Config

PUBLISH_EVERY_S = 60.0
"""How often TensorBoard's file is copied to a RUN that is not on a disk."""

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
"""The module of a sink, and what to install for it."""


class Sink(Protocol):
    errors: tuple[type[Exception], ...]
    """What the service may raise on the way that is no mistake of this program's."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, name: str, png: bytes) -> None: ...

    def close(self) -> None: ...


def check_sinks(config: Config) -> None:
    """Raises ConfigError, before anything is begun, for one that can't be imported."""
    for name in config.watch.sinks:
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            raise ConfigError(
                f"watch.sinks has {name!r}, but the package is not installed; `pip install "
                f"{package}` on every machine that trains, or leave it out"
            )


def open_sinks(config: Config, first_step: int) -> dict[str, Sink]:
    """By name; raises ConfigError for one that can't be started."""
    return {name: SINKS[name](config, first_step) for name in config.watch.sinks}


def run_id(config: Config) -> str:
    """The same whenever the run goes on."""
    return digest_of([storage.canonical(config.run), config.digest()])


class TensorBoard:
    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, config: Config, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._url = storage.join(config.run, "tensorboard")
        self._is_local = "://" not in self._url
        self._folder = self._url if self._is_local else tempfile.mkdtemp(prefix="carrara-")
        # What an earlier attempt logged from this step on is told to be dropped.
        self._writer = SummaryWriter(self._folder, purge_step=first_step + 1)
        self._published = time.monotonic()

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._flush(time.monotonic() - self._published > PUBLISH_EVERY_S)

    def picture(self, step: int, name: str, png: bytes) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._flush(True)

    def close(self) -> None:
        self._flush(True)
        self._writer.close()
        if not self._is_local:
            shutil.rmtree(self._folder)

    def _flush(self, publish: bool) -> None:
        self._writer.flush()
        if publish and not self._is_local:
            for file in Path(self._folder).iterdir():
                storage.publish_bytes(storage.join(self._url, file.name), file.read_bytes())
            self._published = time.monotonic()


class WeightsAndBiases:
    def __init__(self, config: Config, _first_step: int) -> None:
        import wandb

        self._wandb = wandb
        self.errors: tuple[type[Exception], ...] = (OSError, wandb.Error)
        with _started("wandb", self.errors, "`wandb login` or WANDB_MODE=offline helps"):
            self._run = wandb.init(
                project=config.watch.project,
                id=run_id(config),
                resume="allow",
                dir=config.run if "://" not in config.run else None,
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, console="off"),
            )
        # wandb's own step may not go back, as it does when a run goes on from a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step} | values)

    def picture(self, step: int, name: str, png: bytes) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(png)) as image:
            self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    def __init__(self, config: Config, first_step: int) -> None:
        import mlflow
        from mlflow.exceptions import MlflowException

        self.errors: tuple[type[Exception], ...] = (OSError, MlflowException)
        uri, artifacts = _mlflow_places(config)
        remedy = "MLFLOW_TRACKING_URI names a server; sqlite needs `pip install mlflow`"
        with _started("mlflow", self.errors, remedy):
            self._client = mlflow.MlflowClient(uri)
            name = config.watch.project
            found = self._client.get_experiment_by_name(name)
            experiment = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(name, artifacts)
            )
            self._run_id = self._go_on(experiment, config, first_step)

    def _go_on(self, experiment: str, config: Config, first_step: int) -> str:
        own = run_id(config)
        runs = self._client.search_runs([experiment], f"tags.`carrara.run` = '{own}'")
        if runs and first_step:
            return str(runs[0].info.run_id)
        tags = {"carrara.run": own, "carrara.folder": config.run}
        new = str(self._client.create_run(experiment, tags=tags).info.run_id)
        for key, value in config.model_dump(mode="json").items():
            self._client.log_param(new, key, value)
        return new

    def log(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics)

    def picture(self, step: int, name: str, png: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="carrara-") as folder:
            file = Path(folder) / f"step-{step:06d}.png"
            file.write_bytes(png)
            self._client.log_artifact(self._run_id, str(file), name)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _mlflow_places(config: Config) -> tuple[str, str | None]:
    """The tracking server, and where a new experiment's files go; RUN's own where none is named."""
    import mlflow

    is_named: Any = mlflow.is_tracking_uri_set  # it has no types
    if is_named() or "://" in config.run:
        return mlflow.get_tracking_uri(), None
    folder = Path(config.run).absolute()
    return f"sqlite:///{folder}/mlflow.db", (folder / "mlflow-artifacts").as_uri()


@contextmanager
def _started(name: str, errors: tuple[type[Exception], ...], remedy: str) -> Iterator[None]:
    try:
        yield
    except errors as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"watch.sinks: {name} can't be started ({reason}); {remedy}, or leave it out"
        ) from error


SINKS: dict[str, Callable[[Config, int], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What of a line of metrics can be plotted."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float)
    }
