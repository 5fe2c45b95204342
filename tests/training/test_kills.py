"""SIGKILL at a random moment, SIGTERM: what goes on afterwards ends as what was never disturbed,
bit for bit. (test_train.py kills a worker of Ray's, test_elastic.py a machine.)"""

import functools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from training.checkpoint import checkpoint_url, complete_steps
from training.config import Config, ParallelConfig
from training.log import read_events, read_metrics
from training.record import RunRecord
from training.train import run

TRAIN = """
import sys
from training.config import Config
from training.train import run
run(Config.model_validate_json(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def long_config_of(config_of: Callable[..., Config]) -> Callable[..., Config]:
    """With dropout, and long enough to be struck on the way."""
    return functools.partial(config_of, num_steps=60, checkpoint_every=7, log_every=1)


@pytest.fixture(scope="module")
def undisturbed(
    long_config_of: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> str:
    config = long_config_of(run=str(tmp_path_factory.mktemp("undisturbed")))
    run(config)
    return config.run


def test_job_killed_at_a_random_moment_ends_as_if_it_had_not_been(
    long_config_of: Callable[..., Config], undisturbed: str, tmp_path: Path
) -> None:
    config = long_config_of(run=str(tmp_path / "run"))
    job = subprocess.Popen([sys.executable, "-c", TRAIN, config.model_dump_json()])
    wait_until(lambda: bool(complete_steps(config.run)))
    time.sleep(random.random() / 2)
    job.kill()
    job.wait()
    run(config)
    assert_same(config.run, undisturbed)


def test_job_that_is_told_to_end_leaves_a_checkpoint_of_its_last_step(
    long_config_of: Callable[..., Config], undisturbed: str, tmp_path: Path
) -> None:
    config = long_config_of(run=str(tmp_path / "run"), num_steps=60, checkpoint_every=1000)
    command = [sys.executable, "-c", TRAIN, config.model_dump_json()]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bool(read_events(config.run)))
    time.sleep(random.random() / 2)
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate()
    (step,) = complete_steps(config.run)
    assert 0 < step < 60
    assert f"stopped by SIGTERM after step {step} of 60, with a checkpoint" in told
    run(config)
    assert read_events(config.run)[-1]["step"] == step
    assert_same(config.run, undisturbed)


def test_sharded_job_killed_at_a_random_moment_ends_as_if_it_had_not_been(
    long_config_of: Callable[..., Config],
    record_of: Callable[[Config], RunRecord],
    train_in_processes: Callable[[list[list[Config]]], list[str]],
    tmp_path: Path,
) -> None:
    names, sharded = ("struck", "straight"), ParallelConfig(mode="fsdp")
    struck, straight = (
        long_config_of(run=str(tmp_path / name), num_steps=30, parallel=sharded) for name in names
    )
    plan = tmp_path / "plan.json"
    records = [record_of(struck).model_dump_json()] * 2
    phase = {"rendezvous": f"file://{tmp_path}/rendezvous", "num_workers": 2, "records": records}
    plan.write_text(json.dumps([phase]))
    script = str(Path(__file__).with_name("processes.py"))
    job = [subprocess.Popen([sys.executable, script, str(rank), str(plan)]) for rank in (0, 1)]
    wait_until(lambda: bool(complete_steps(struck.run)))
    time.sleep(random.random() / 2)
    for process in job:
        process.kill()
    for process in job:
        process.wait()
    assert train_in_processes([[struck] * 2, [straight] * 2]) == []
    assert_same(struck.run, straight.run)


def assert_same(run: str, undisturbed: str) -> None:
    for ours, theirs in zip(read_metrics(run), read_metrics(undisturbed), strict=True):
        for name in ("step", "loss", "grad_norm", "lr", "samples"):
            assert ours[name] == theirs[name]
    last = max(complete_steps(undisturbed))
    folders = [Path(checkpoint_url(run, last)) for run in (run, undisturbed)]
    names = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
