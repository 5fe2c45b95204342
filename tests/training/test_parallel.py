"""Several processes against one: the same maths, the same samples, checkpoints for each other."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ConfigError
from training import loop
from training.checkpoint import checkpoint_url, load
from training.config import Config, ParallelConfig, UNetConfig
from training.log import read_events, read_metrics
from training.parallel import Layout, Worker
from training.record import RunRecord

CPU = torch.device("cpu")
NO_DROPOUT = UNetConfig(
    channels=8, channel_mults=(1, 2), num_res_blocks=1, num_heads=2, dropout=0.0
)


@given(st.integers(1, 9), st.integers(1, 64), st.integers(2, 9))
def test_shares_cover_the_batch_and_all_workers_pass_as_often(
    num_workers: int, batch_size: int, max_batch_per_worker: int
) -> None:
    workers = [Worker(rank, num_workers, CPU) for rank in range(num_workers)]
    if batch_size < num_workers:
        with pytest.raises(ConfigError, match="at least one picture for each"):
            workers[0].positions(batch_size)
        return
    shares = [worker.positions(batch_size) for worker in workers]
    assert [p for share in shares for p in share] == list(range(batch_size))
    passes = [worker.passes(batch_size, max_batch_per_worker) for worker in workers]
    assert len({len(cuts) for cuts in passes}) == 1
    for share, cuts in zip(shares, passes, strict=True):
        rows = [list(range(len(share)))[cut] for cut in cuts]
        assert [row for part in rows for row in part] == list(range(len(share)))
        assert all(0 < len(part) <= max_batch_per_worker for part in rows)


def test_uneven_shares_of_one_picture_a_pass_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_batch_per_worker is 1: .* expected at least 2"):
        Worker(0, 3, CPU).passes(8, 1)
    assert len(Worker(0, 2, CPU).passes(8, 1)) == 4


@given(st.integers(1, 9), st.integers(1, 20))
def test_rows_of_all_shards_are_the_tensor_and_lie_as_torch_deals_them(
    num_shards: int, num_rows: int
) -> None:
    tensor = torch.arange(num_rows * 2).view(num_rows, 2)
    shards = [Layout(1, num_shards, 0, shard).rows(tensor) for shard in range(num_shards)]
    assert torch.equal(torch.cat(shards), tensor)
    for ours, theirs in zip(shards, tensor.chunk(num_shards), strict=False):
        assert torch.equal(ours, theirs)


def test_hsdp_shares_a_copy_among_as_many_as_divide() -> None:
    config = ParallelConfig(mode="hsdp", shard_workers=4)
    layout = Layout.of(config, Worker(5, 8, CPU))
    assert (layout.num_replicas, layout.num_shards, layout.replica, layout.shard) == (2, 4, 1, 1)
    assert not layout.is_writer
    assert Layout.of(config, Worker(0, 6, CPU)).num_shards == 2


@dataclass(frozen=True)
class Runs:
    """Of the same settings, but for their workers."""

    alone: str
    spread: dict[str, str]
    """By "<mode> on <workers>"."""
    sharded_then_alone: str
    alone_then_sharded: str


SPREAD = (("hsdp", 4), ("fsdp", 3), ("ddp", 3), ("fsdp", 2))


@pytest.fixture(scope="module")
def runs(
    config_of: Callable[..., Config],
    record_of: Callable[[Config], RunRecord],
    train_in_processes: Callable[[list[list[Config]]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    folder = tmp_path_factory.mktemp("runs")

    def config(name: str, mode: str = "ddp") -> Config:
        parallel = ParallelConfig.model_validate({"mode": mode, "shard_workers": 2})
        return config_of(
            str(folder / name), num_steps=6, checkpoint_every=3, unet=NO_DROPOUT, parallel=parallel
        )

    alone = config("alone")
    loop.train(record_of(alone))
    begun_alone = config("alone, then sharded", "fsdp")
    keep_until(3, alone.run, begun_alone.run)
    configs = {f"{mode} on {num}": config(f"{mode} on {num}", mode) for mode, num in SPREAD}
    phases = [[configs[f"{mode} on {num}"]] * num for mode, num in SPREAD]
    assert train_in_processes([*phases, [begun_alone] * 2]) == []
    begun_sharded = config("sharded, then alone")
    keep_until(3, configs["fsdp on 2"].run, begun_sharded.run)
    loop.train(record_of(begun_sharded))
    spread = {name: config.run for name, config in configs.items()}
    return Runs(alone.run, spread, begun_sharded.run, begun_alone.run)


def keep_until(step: int, source: str, target: str) -> None:
    """Copy a run as if it had been killed soon after this step's checkpoint."""
    shutil.copytree(source, target)
    shutil.rmtree(checkpoint_url(target, 6))
    assert Path(checkpoint_url(target, step)).exists()


@pytest.mark.parametrize("name", [f"{mode} on {num}" for mode, num in SPREAD])
def test_spread_run_is_that_of_one_process(runs: Runs, name: str) -> None:
    assert_same_to_rounding(runs.spread[name], runs.alone)


def test_what_shards_wrote_one_process_goes_on_from_and_the_reverse(runs: Runs) -> None:
    for crossed in (runs.sharded_then_alone, runs.alone_then_sharded):
        assert [event["event"] for event in read_events(crossed)] == ["start", "resume"]
        assert_same_to_rounding(crossed, runs.alone)


def assert_same_to_rounding(run: str, alone: str) -> None:
    for ours, theirs in zip(read_metrics(run), read_metrics(alone), strict=True):
        assert ours["samples"] == theirs["samples"]
        for name in ("step", "loss", "grad_norm", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    ours, theirs = (load(run, 6).parts for run in (run, alone))
    assert ours.keys() == theirs.keys()
    for part, tensors in theirs.items():
        assert ours[part].keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(ours[part][key], tensor, atol=2e-4, rtol=1e-2)


def test_sharded_checkpoint_has_a_file_a_shard_and_names_them_all(runs: Runs) -> None:
    folder = Path(checkpoint_url(runs.spread["hsdp on 4"], 6))
    parts = [f"{part}-0000{i}-of-00002" for part in ("ema", "model", "optimizer") for i in (0, 1)]
    assert sorted(p.stem for p in folder.glob("*.safetensors")) == parts
    sizes = [(folder / f"model-0000{i}-of-00002.safetensors").stat().st_size for i in (0, 1)]
    assert sizes[1] > 0.4 * sizes[0]
