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
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from infra import storage
from infra.cluster import Workers, connect
from infra.errors import ConfigError, DamagedError, InputError
from pipeline.corpus import Manifest, read_manifest, shard_url
from training import loop
from training.checkpoint import checkpoint_url, complete_steps, load
from training.config import Config, UNetConfig
from training.log import read_events, read_metrics
from training.record import RunRecord
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
    long_config_of: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A run by two processes of torch.distributed, without Ray."""
    folder = tmp_path_factory.mktemp("pair")
    pair, apart = (long_config_of(run=str(folder / name)) for name in ("pair", "apart"))
    records = [record_of(config).model_dump_json() for config in (pair, apart)]
    multiprocessing.spawn(one_of_two, (f"file://{folder}/rendezvous", records), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    return pair.run


def one_of_two(rank: int, rendezvous: str, records: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    pair, apart = (RunRecord.model_validate_json(record) for record in records)
    loop.train(pair)
    with pytest.raises(InputError, match="the workers find different checkpoints there"):
        loop.train(pair if rank == 0 else apart)
    dist.destroy_process_group()


def record_of(config: Config) -> RunRecord:
    digest = read_manifest(config.root).digest
    return RunRecord(config=config, corpus_digest=digest, encoder_digest="")


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
