"""Ray Train around the loop: real workers, one of them killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.cluster import Workers
from infra.errors import CarraraError
from training.checkpoint import complete_steps
from training.config import Config
from training.log import read_events, read_metrics
from training.train import run

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

TWO = Workers(num_workers=2, cpus_per_worker=0.5)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for the module, in a folder of its own; the workers inherit the environment."""
    import ray

    from infra.cluster import connect

    connect(Workers())
    yield
    ray.shutdown()


def exact(run: str) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "lr")
    return [tuple(line[name] for name in names) for line in read_metrics(run)]


def test_killed_worker_is_replaced_and_the_losses_are_those_of_an_undisturbed_run(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    settings = {"num_steps": 60, "checkpoint_every": 10, "log_every": 5, "workers": TWO}
    calm = tiny_config(run=str(tmp_path / "calm"), **settings)
    struck = tiny_config(run=str(tmp_path / "struck"), **settings)
    run(calm)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(struck.run, killed))
    killer.start()
    summary = run(struck)
    killer.join()
    assert len(killed) == 1
    events = read_events(struck.run)
    assert [event["event"] for event in events] == ["start", "resume"]
    assert 0 < events[1]["step"] < 60
    assert summary.details["resumes"] == 1
    assert exact(struck.run) == exact(calm.run)
    weights = [Path(c.run, "checkpoints/step-000060/ema.safetensors") for c in (calm, struck)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def kill_a_worker_after_a_checkpoint(run: str, killed: list[int]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not killed:
        time.sleep(0.05)
        if complete_steps(run):
            victim = read_events(run)[0]["pid"]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)


def test_mistake_found_by_a_worker_ends_the_run_at_once(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(learning_rate=1e30, num_steps=40, workers=TWO)
    with pytest.raises(CarraraError, match=r"the loss is (nan|inf) at step"):
        run(config)
    assert [event["event"] for event in read_events(config.run)] == ["start"]  # no second try


def test_run_and_corpus_may_be_in_object_storage(
    tiny_config: Callable[..., Config], s3_bucket: str, make_corpus: Callable[..., object]
) -> None:
    make_corpus(f"{s3_bucket}/corpus")
    config = tiny_config(
        root=f"{s3_bucket}/corpus", run=f"{s3_bucket}/run", workers=Workers(local=True)
    )
    run(config)
    assert complete_steps(config.run) == [8, 12]
    assert run(config).details["already_complete"] is True
