"""Ray Train around the loop: real workers, one of them killed, on a disk and on an S3 server."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import storage
from infra.cluster import Workers, connect
from infra.errors import ConfigError, DamagedError
from pipeline.corpus import Manifest, shard_url
from training.checkpoint import checkpoint_url, complete_steps
from training.config import Config
from training.log import read_events, read_metrics
from training.train import run

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

TWO = Workers(num_workers=2, cpus_per_worker=0.5)


@pytest.fixture(scope="module", autouse=True)
def cluster(s3_endpoint: str) -> Iterator[None]:
    """One Ray for the module; its workers inherit the environment that leads to the S3 server."""
    import ray

    assert s3_endpoint
    connect(Workers())
    yield
    ray.shutdown()


def exact(run: str) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "lr")
    return [tuple(line[name] for name in names) for line in read_metrics(run)]


def test_run_whose_worker_was_killed_ends_as_an_undisturbed_one_even_in_object_storage(
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    s3_bucket: str,
    make_corpus: Callable[..., Manifest],
) -> None:
    make_corpus(f"{s3_bucket}/corpus")
    settings = {"num_steps": 60, "checkpoint_every": 10, "log_every": 5, "workers": TWO}
    calm = tiny_config(run=str(tmp_path / "calm"), **settings)
    struck = tiny_config(root=f"{s3_bucket}/corpus", run=f"{s3_bucket}/run", **settings)
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
    for part in ("model", "ema", "optimizer"):
        files = [f"{checkpoint_url(c.run, 60)}/{part}.safetensors" for c in (calm, struck)]
        assert storage.read_bytes(files[0]) == storage.read_bytes(files[1])
    assert run(struck).details["already_complete"] is True


def kill_a_worker_after_a_checkpoint(run: str, killed: list[int]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not killed:
        time.sleep(0.05)
        if complete_steps(run):
            victim = read_events(run)[0]["pid"]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)


def test_mistake_found_by_a_worker_ends_the_run_at_once(
    tiny_config: Callable[..., Config], small_corpus: str
) -> None:
    tar = Path(shard_url(small_corpus, "00001"))
    tar.write_bytes(tar.read_bytes()[:700])
    config = tiny_config(root=small_corpus, workers=Workers(num_workers=1))
    with pytest.raises(DamagedError, match=r"00001\.tar: damaged"):
        run(config)
    assert [event["event"] for event in read_events(config.run)] == ["start"]  # no second try


def test_more_workers_than_this_machine_holds_are_refused_at_once(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    workers = Workers(num_workers=4, cpus_per_worker=1000)
    with pytest.raises(ConfigError, match=r"workers.* than the cluster has"):
        run(tiny_config(workers=workers))
    workers = Workers(num_workers=8, cpus_per_worker=os.cpu_count() or 1)
    with pytest.raises(ConfigError, match=r"num_workers is 8: this machine holds 1"):
        run(tiny_config(workers=workers))
