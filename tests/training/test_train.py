"""Ray Train around the loop: real workers, one of them killed, on a disk and on an S3 server."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from infra import storage
from infra.cluster import Workers, connect
from infra.errors import ConfigError, DamagedError
from pipeline.corpus import Manifest, shard_url
from retrieval.encoding.encoder import load_encoder
from training.checkpoint import checkpoint_url, complete_steps, load
from training.config import Config, UNetConfig
from training.log import read_events, read_metrics
from training.record import RunRecord, begin
from training.train import run

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

NO_DROPOUT = UNetConfig(
    channels=8, channel_mults=(1, 2), num_res_blocks=1, num_heads=2, dropout=0.0
)
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


@pytest.fixture(scope="module")
def long_config_of(config_of: Callable[..., Config]) -> Callable[..., Config]:
    """Long enough to be struck on the way, and without dropout, which one and two do apart."""
    settings = {"num_steps": 60, "checkpoint_every": 10, "log_every": 5, "workers": TWO}
    return functools.partial(config_of, unet=NO_DROPOUT, **settings)


@pytest.fixture(scope="module")
def pair_run(
    long_config_of: Callable[..., Config],
    train_in_processes: Callable[[list[list[Config]]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A run by two processes of torch.distributed, without Ray."""
    folder = tmp_path_factory.mktemp("pair")
    pair, apart = (long_config_of(run=str(folder / name)) for name in ("pair", "apart"))
    (told, same) = train_in_processes([[pair, pair], [pair, apart]])
    assert "InputError" in told
    assert "the workers find different checkpoints there (of steps 60, 0)" in told
    assert same == told.replace(pair.run, apart.run)
    return pair.run


def test_two_processes_train_as_one(
    long_config_of: Callable[..., Config], tmp_path: Path, pair_run: str
) -> None:
    alone = long_config_of(run=str(tmp_path), workers=Workers(local=True))
    run(alone)
    for a, b in zip(exact(alone.run), exact(pair_run), strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    weights = [load(run, 60, ("model",)).parts["model"] for run in (alone.run, pair_run)]
    torch.testing.assert_close(weights[1], weights[0], atol=1e-3, rtol=1e-2)
    assert read_events(pair_run)[0]["num_workers"] == 2


def test_run_whose_worker_is_killed_ends_as_an_undisturbed_one_and_in_object_storage_too(
    long_config_of: Callable[..., Config],
    pair_run: str,
    s3_bucket: str,
    make_corpus: Callable[..., Manifest],
) -> None:
    make_corpus(f"{s3_bucket}/corpus")
    struck = long_config_of(root=f"{s3_bucket}/corpus", run=f"{s3_bucket}/run")
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
    assert exact(struck.run) == exact(pair_run)
    for part in ("model", "ema", "optimizer"):
        files = [f"{checkpoint_url(run, 60)}/{part}.safetensors" for run in (pair_run, struck.run)]
        assert storage.read_bytes(files[0]) == storage.read_bytes(files[1])
    assert run(struck).details["already_complete"] is True


def kill_a_worker_after_a_checkpoint(run: str, killed: list[int]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not killed:
        time.sleep(0.05)
        if complete_steps(run):
            victim = read_events(run)[0]["workers"][0]["pid"]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)


def test_storage_that_fails_for_a_while_costs_a_try_and_no_more(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> None:
    config = tiny_config(workers=Workers(num_workers=1))
    digest = load_encoder(config.encoder).weights_digest
    begin(record_of(config).model_copy(update={"encoder_digest": digest}))
    obstacle = Path(config.run) / "checkpoints"
    obstacle.write_text("a file where a folder should be")

    def clear_at_the_second_try() -> None:
        wait_until(lambda: len(read_events(config.run)) > 1)
        obstacle.unlink()

    clearing = threading.Thread(target=clear_at_the_second_try)
    clearing.start()
    run(config)
    clearing.join()
    assert [event["event"] for event in read_events(config.run)][:2] == ["start", "start"]
    assert complete_steps(config.run) == [8, 12]
    assert [line["step"] for line in read_metrics(config.run)] == [2, 4, 6, 8, 10, 12]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.002)


def test_mistake_found_by_a_worker_ends_the_run_at_once(
    tiny_config: Callable[..., Config], small_corpus: str
) -> None:
    tar = Path(shard_url(small_corpus, "00001"))
    tar.write_bytes(tar.read_bytes()[:700])
    config = tiny_config(root=small_corpus, workers=Workers(num_workers=1))
    with pytest.raises(DamagedError, match=r"shard 00001, sample [0-9a-f]{32}: damaged"):
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
