"""Machines come and go: a run goes on with those that are left, and with a new one."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cluster import Workers
from training import loop
from training.checkpoint import checkpoint_url, complete_steps
from training.config import Config, ParallelConfig, UNetConfig, WatchConfig
from training.log import Metrics, read_events, read_metrics
from training.record import RunRecord
from training.train import run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

PREEMPTION = 2
"""DRAIN_NODE_REASON_PREEMPTION of Ray's protocol."""
ENDLESS = 100_000
"""Steps: more than are taken until a machine has come."""
UNWATCHED = WatchConfig(held_out_every=0, grid_every=0)
UNET = UNetConfig(channels=8, channel_mults=(1, 2), num_res_blocks=1, num_heads=2, dropout=0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, to which machines are added."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of the tests before
    # Else Ray writes a token of its own to the home folder.
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "0" * 64))
    # A machine that has much else to do takes its time.
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
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
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    settings = {"num_steps": 150, "checkpoint_every": 10_000, "log_every": 5, "unet": UNET}
    struck = config_of(str(folder / "struck"), **settings, **one_or_two(cluster))
    taker = threading.Thread(target=take_a_machine, args=(struck.run, cluster, machines[0]))
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
    assert_same_to_rounding(read_metrics(struck.run), read_metrics(alone.run))


def one_or_two(cluster: Any) -> dict[str, Any]:
    workers = Workers(address=cluster.address, num_workers=2)
    return {"workers": workers, "parallel": ParallelConfig(min_workers=1)}


def assert_same_to_rounding(ours: list[Metrics], theirs: list[Metrics]) -> None:
    lines = {line["step"]: line for line in theirs}
    for line in ours:
        assert line["samples"] == lines[line["step"]]["samples"]
        assert line["loss"] == pytest.approx(lines[line["step"]]["loss"], rel=0.02)


def take_a_machine(run: str, cluster: Any, machine: Any) -> None:
    import ray

    wait_until(lambda: bool(read_events(run)))
    deadline_ms = int(time.time() * 1000) + 60_000
    client = ray._raylet.GcsClient(address=cluster.address)
    assert client.drain_node(machine.node_id, PREEMPTION, "spot", deadline_ms)[0]
    wait_until(lambda: bool(complete_steps(run)))
    os.kill(machine.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    cluster.remove_node(machine, allow_graceful=False)


def test_run_that_began_with_one_machine_grows_with_the_next(
    config_of: Callable[..., Config],
    record_of: Callable[[Config], RunRecord],
    cluster: Any,
    free_ports: Callable[[int], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray.train

    # Ray looks for more machines once a minute; here it does so at once.
    quick = functools.partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=1)
    monkeypatch.setattr(ray.train, "ScalingConfig", quick)
    cluster.add_node(num_cpus=1)
    settings: dict[str, Any] = {"num_steps": ENDLESS, "checkpoint_every": 20, "keep_last": ENDLESS}
    settings |= {"log_every": 5, "unet": UNET, "watch": UNWATCHED}
    grown = config_of(str(tmp_path / "grown"), **settings, **one_or_two(cluster))
    given: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    command += [f"--address={cluster.address}", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
    giver = threading.Thread(target=give_a_machine, args=(grown.run, command, given))
    on_interrupt = signal.getsignal(signal.SIGINT)
    giver.start()
    try:
        with pytest.raises(SystemExit):  # Ray's answer to the interrupt that ends the run
            run(grown)
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        giver.join()
        for machine in given:
            os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()
    start, resume = starts(grown.run)
    assert (start["event"], start["num_workers"]) == ("start", 1)
    assert (resume["event"], resume["num_workers"]) == ("resume", 2)

    # One worker, from the checkpoint that the two went on from.
    alone = config_of(str(tmp_path / "alone"), **settings)
    step = resume["step"]
    source, target = (checkpoint_url(one.run, step) for one in (grown, alone))
    shutil.copytree(source, target)
    lines = [line for line in read_metrics(grown.run) if step < line["step"] <= step + 20]
    assert len(lines) == 4
    alone_lines: list[Metrics] = []

    def stop_at_the_last(line: Metrics) -> None:
        alone_lines.append(line)
        if line["step"] == lines[-1]["step"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(record_of(alone), stop_at_the_last)
    assert_same_to_rounding(lines, alone_lines)


def give_a_machine(run: str, command: list[str], given: list[subprocess.Popen[bytes]]) -> None:
    """Ends the run some steps after it has grown, or when it has not for too long.

    Not by `cluster.add_node`, which sets signal handlers: no thread but the main one may.
    """
    wait_until(lambda: bool(complete_steps(run)))
    with Path(run).with_name("machine.log").open("w") as log:
        given.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
    wait_until(lambda: has_grown(run))
    os.kill(os.getpid(), signal.SIGINT)


def has_grown(run: str) -> bool:
    """And gone on, by the checkpoint after the one that it resumed from."""
    found = starts(run)
    return len(found) > 1 and complete_steps(run)[-1] > found[-1]["step"] + 20


def starts(run: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] in {"start", "resume"}]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
