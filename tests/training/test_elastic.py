"""A machine is announced to go and goes: the run goes on with those left, from the notice on."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.cluster import Workers
from training import loop
from training.checkpoint import complete_steps
from training.config import Config, ParallelConfig, UNetConfig
from training.log import read_events, read_metrics
from training.record import RunRecord
from training.train import run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

PREEMPTION = 2
"""DRAIN_NODE_REASON_PREEMPTION of Ray's protocol."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two machines of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of the tests before
    # Else Ray writes a token of its own to the home folder.
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "0" * 64))
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    started.machines = [started.add_node(num_cpus=1) for _ in range(2)]
    yield started
    ray.shutdown()
    started.shutdown()


def test_run_goes_on_from_the_notice_with_the_machine_that_is_left(
    config_of: Callable[..., Config],
    record_of: Callable[[Config], RunRecord],
    cluster: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("elastic")
    unet = UNetConfig(channels=8, channel_mults=(1, 2), num_res_blocks=1, num_heads=2, dropout=0)
    settings = {"num_steps": 150, "checkpoint_every": 10_000, "log_every": 5, "unet": unet}
    workers = Workers(address=cluster.address, num_workers=2)
    elastic = {"workers": workers, "parallel": ParallelConfig(min_workers=1)}
    struck = config_of(str(folder / "struck"), **settings, **elastic)
    taker = threading.Thread(target=take_a_machine, args=(struck.run, cluster))
    taker.start()
    run(struck)
    taker.join()
    events = read_events(struck.run)
    assert [event["event"] for event in events] == ["start", "notice", "resume"]
    assert [event["num_workers"] for event in (events[0], events[2])] == [2, 1]
    # No checkpoint was due: it goes on from the notice's.
    assert events[1]["message"].endswith(f"at {events[2]['step']}")

    alone = config_of(str(folder / "alone"), **settings)
    loop.train(record_of(alone))
    lines = {line["step"]: line for line in read_metrics(alone.run)}
    for line in read_metrics(struck.run):
        assert line["samples"] == lines[line["step"]]["samples"]
        assert line["loss"] == pytest.approx(lines[line["step"]]["loss"], rel=0.02)


def take_a_machine(run: str, cluster: Any) -> None:
    import ray

    machine = cluster.machines[0]
    wait_until(lambda: bool(read_events(run)))
    deadline_ms = int(time.time() * 1000) + 60_000
    client = ray._raylet.GcsClient(address=cluster.address)
    assert client.drain_node(machine.node_id, PREEMPTION, "spot", deadline_ms)[0]
    wait_until(lambda: bool(complete_steps(run)))
    os.kill(machine.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    cluster.remove_node(machine, allow_graceful=False)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
