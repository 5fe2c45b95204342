"""TensorBoard, wandb and MLflow for real, each read back with its own reader."""

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra import storage
from infra.errors import ConfigError
from training.config import Config, WatchConfig
from training.watching import sinks
from training.watching.sinks import check_sinks, numbers, open_sinks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

LINES = [(2, 0.5), (4, 0.4), (6, 0.3)]


@pytest.fixture
def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(out, "PNG")
    return out.getvalue()


def log_twice(config: Config, png: bytes) -> None:
    """A run that is killed after step 6, and goes on from step 4."""
    (sink,) = open_sinks(config, 0).values()
    for step, loss in LINES:
        sink.log(step, {"loss": loss})
    sink.close()
    (sink,) = open_sinks(config, 4).values()
    sink.log(6, {"loss": 0.25})
    sink.picture(6, "grid", png)
    sink.close()


def watched(tiny_config: Callable[..., Config], sink: str, **changes: object) -> Config:
    config = tiny_config(watch=WatchConfig(sinks=(sink,)), **changes)
    if "://" not in config.run:
        Path(config.run).mkdir()
    return config


def check_tensorboard(folder: str) -> None:
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]  # it has none
        event_accumulator,
    )

    events = event_accumulator.EventAccumulator(folder).Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("loss")] == [
        (2, 0.5),
        (4, 0.4),
        (6, 0.25),
    ]
    (image,) = events.Images("grid")
    assert (image.step, image.width, image.height) == (6, 20, 10)


def test_tensorboard_shows_the_run_that_went_on_without_what_it_took_back(
    tiny_config: Callable[..., Config], png: bytes
) -> None:
    config = watched(tiny_config, "tensorboard")
    log_twice(config, png)
    check_tensorboard(f"{config.run}/tensorboard")


def test_tensorboard_in_a_run_that_is_on_no_disk(
    tiny_config: Callable[..., Config], png: bytes, tmp_path: Path
) -> None:
    config = watched(tiny_config, "tensorboard", run="memory://tensorboard-test/run")
    log_twice(config, png)
    for name in storage.list_names(f"{config.run}/tensorboard"):
        data = storage.read_bytes(f"{config.run}/tensorboard/{name}")
        (tmp_path / "events").mkdir(exist_ok=True)
        (tmp_path / "events" / name).write_bytes(data)
    check_tensorboard(str(tmp_path / "events"))


def test_mlflow_goes_on_in_the_same_run(tiny_config: Callable[..., Config], png: bytes) -> None:
    import mlflow

    config = watched(tiny_config, "mlflow")
    log_twice(config, png)
    client = mlflow.MlflowClient(f"sqlite:///{config.run}/mlflow.db")
    experiment = client.get_experiment_by_name("carrara")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(2, 0.5), (4, 0.4), (6, 0.3), (6, 0.25)]
    assert run.data.params["batch_size"] == "8"
    grid = client.list_artifacts(run.info.run_id, "grid")
    assert [file.path for file in grid] == ["grid/step-000006.png"]


def test_wandb_offline_keeps_what_was_logged(
    tiny_config: Callable[..., Config], png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = watched(tiny_config, "wandb")
    log_twice(config, png)
    attempts = sorted(Path(config.run, "wandb").glob("offline-run-*"))
    assert len(attempts) == 2
    assert all(folder.name.endswith(sinks.run_id(config)) for folder in attempts)
    seen = [[(row["step"], row["loss"]) for row in wandb_history(folder)] for folder in attempts]
    assert seen == [LINES, [(6, 0.25)]]
    assert list(attempts[1].glob("files/media/images/grid*.png"))


def wandb_history(folder: Path) -> list[dict[str, float]]:
    """The rows with a loss, of wandb's own file: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # generated
    (file,) = folder.glob("run-*.wandb")
    rows = []
    for data in records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        rows.append({key: json.loads(value) for key, value in items.items()})
    return [row for row in rows if "loss" in row]


def records(log: bytes) -> Iterator[bytes]:
    """Blocks of 32 kB of parts, each after its checksum, size and kind; 7 bytes come before all."""
    place, whole = 7, b""
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, place)
        whole += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b""


def test_package_that_is_missing_is_named_with_its_remedy(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sinks.PACKAGES, "wandb", ("no_such_module", "wandb"))
    check_sinks(tiny_config())
    with pytest.raises(ConfigError, match=r"has 'wandb', but .* `pip install wandb` on every"):
        check_sinks(tiny_config(watch=WatchConfig(sinks=("wandb",))))


def test_server_that_cannot_be_had_is_told_in_one_line(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://there")
    with pytest.raises(ConfigError, match=r"mlflow can't be started .*MLFLOW_TRACKING_URI names"):
        open_sinks(watched(tiny_config, "mlflow"), 0)


def test_only_numbers_are_plotted() -> None:
    line = {"step": 3, "loss": 0.5, "bound_by": "data", "mfu_percent": None, "memory_gb": 1}
    assert numbers(line) == {"loss": 0.5, "memory_gb": 1.0}
