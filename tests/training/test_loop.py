"""The loop in this process."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from infra import storage
from infra.errors import ConfigError, ConflictError, DamagedError, ShortfallError
from training import loop
from training.checkpoint import checkpoint_url, complete_steps, load
from training.config import Config
from training.draws import draw
from training.log import Metrics, read_events, read_metrics
from training.model import load_model
from training.notices import Notice
from training.parallel import Worker
from training.record import RunRecord
from training.text import CaptionEncoder
from training.train import run

EXACT = ("step", "loss", "grad_norm", "lr")


def exact(run: str) -> list[tuple[float, ...]]:
    return [tuple(line[name] for name in EXACT) for line in read_metrics(run)]


def stop_at(step: int) -> Callable[[Metrics], None]:
    def on_log(line: Metrics) -> None:
        if line["step"] >= step:
            raise KeyboardInterrupt

    return on_log


def test_loss_falls_on_a_few_pictures(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(num_steps=80, checkpoint_every=80, learning_rate=5e-3, log_every=10)
    run(config)
    losses = [line["loss"] for line in read_metrics(config.run)]
    assert losses[0] > 0.3
    assert losses[-1] < 0.5 * losses[0]


def test_interrupted_run_resumes_to_the_same_losses_and_weights(
    tiny_config: Callable[..., Config],
    record_of: Callable[[Config], RunRecord],
    tmp_path: Path,
) -> None:
    straight = tiny_config(run=str(tmp_path / "straight"))
    run(straight)
    stopped = tiny_config(run=str(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):  # past the checkpoint of step 4
        loop.train(record_of(stopped), stop_at(6))
    assert complete_steps(stopped.run) == [4]
    loop.train(record_of(stopped))
    assert exact(stopped.run) == exact(straight.run)
    assert [event["event"] for event in read_events(stopped.run)] == ["start", "resume"]
    for part in ("model", "ema", "optimizer"):
        name = f"{part}.safetensors"
        files = [Path(checkpoint_url(c.run, 12)) / name for c in (straight, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_damaged_checkpoint_is_told_and_the_one_before_used(
    tiny_config: Callable[..., Config],
    record_of: Callable[[Config], RunRecord],
    tmp_path: Path,
) -> None:
    straight, stopped = (tiny_config(run=str(tmp_path / name)) for name in ("straight", "stopped"))
    run(straight)
    with pytest.raises(KeyboardInterrupt):
        loop.train(record_of(stopped), stop_at(10))
    (Path(checkpoint_url(stopped.run, 8)) / "ema.safetensors").write_bytes(b"short")
    loop.train(record_of(stopped))
    assert exact(stopped.run) == exact(straight.run)
    damage, resume = read_events(stopped.run)[1:]
    assert "step-000008: ema.safetensors" in damage["message"]
    assert resume["step"] == 4


def test_finished_run_whose_last_checkpoint_is_damaged_is_finished_again(
    tiny_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    run(config)
    file = Path(checkpoint_url(config.run, 12)) / "ema.safetensors"
    whole, logged = file.read_bytes(), exact(config.run)
    file.write_bytes(whole[:-1])
    with pytest.raises(DamagedError, match=r"ema\.safetensors .*the same `carrara train` makes it"):
        load_model(config.run)
    capsys.readouterr()
    summary = run(config)
    assert summary.details["already_complete"] is False
    assert summary.counts["done before"] == 8
    assert file.read_bytes() == whole
    assert exact(config.run) == logged
    told = capsys.readouterr().err
    assert "train: damaged checkpoint: checkpoint " in told
    assert "train: resume: from step 8\n" in told
    assert run(config).details["already_complete"] is True


def test_damaged_checkpoint_takes_the_place_of_none_that_stays(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> None:
    config = tiny_config(keep_last=1, keep_every=4)
    with pytest.raises(KeyboardInterrupt):
        loop.train(record_of(config), stop_at(10))
    assert complete_steps(config.run) == [4, 8]
    (Path(checkpoint_url(config.run, 8)) / "ema.safetensors").write_bytes(b"short")
    notice = Notice("SIGTERM", ends_run=True)
    with pytest.raises(ShortfallError, match="stopped by SIGTERM after step 5"):
        loop.train(record_of(config), notices=lambda: notice)
    assert complete_steps(config.run) == [4, 5]


def test_accumulation_leaves_the_maths_as_it_is(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    unet = tiny_config().unet.model_copy(update={"dropout": 0.0})
    whole = tiny_config(run=str(tmp_path / "whole"), unet=unet)
    parts = tiny_config(run=str(tmp_path / "parts"), unet=unet, max_batch_per_worker=3)
    run(whole)
    run(parts)
    for a, b in zip(exact(whole.run), exact(parts.run), strict=True):
        assert b == pytest.approx(a, rel=1e-4)


def begun_trainer(config: Config, record_of: Callable[[Config], RunRecord]) -> loop.Trainer:
    """One that has gone on from the checkpoint of step 4."""
    with pytest.raises(KeyboardInterrupt):
        loop.train(record_of(config), stop_at(6))
    trainer = loop.Trainer(record_of(config), Worker.current())
    trainer.resume()
    return trainer


def test_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> None:
    config = tiny_config()
    trainer = begun_trainer(config, record_of)
    torch.nn.init.constant_(trainer.model.get_parameter("conditioning.null_text"), math.nan)
    batch = trainer.stream.batch(4, range(8)).uids
    told = rf"the loss is nan at step 5; the checkpoints before.*the batch is {batch[0]}"
    with pytest.raises(ShortfallError, match=told):
        trainer.run()
    assert read_events(config.run)[-1]["uids"] == batch
    assert complete_steps(config.run) == [4]
    weights = load(config.run, 4).parts["model"]
    assert all(weight.isfinite().all() for weight in weights.values())


def test_non_finite_gradient_of_a_finite_loss_stops_the_run(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> None:
    config = tiny_config()
    trainer = begun_trainer(config, record_of)
    weight: Any = next(trainer.model.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ShortfallError, match=r"the gradient's norm is (inf|nan) at step 5"):
        trainer.run()
    assert complete_steps(config.run) == [4]


def test_checkpoint_of_other_settings_is_refused_and_says_which(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord], tmp_path: Path
) -> None:
    other = tiny_config(run=str(tmp_path / "other"), num_steps=4, learning_rate=1e-3)
    run(other)
    config = tiny_config()
    shutil.copytree(checkpoint_url(other.run, 4), checkpoint_url(config.run, 4))
    told = r"step-000004: of another run \(learning_rate = 0\.001, now 0\.0002; num_steps = 4"
    with pytest.raises(ConflictError, match=told):
        loop.train(record_of(config))
    assert complete_steps(config.run) == [4]


def test_text_tower_reads_no_more_captions_at_once_than_a_pass_has_pictures(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> None:
    config = tiny_config(max_batch_per_worker=3, text_cache_captions=0)
    trainer = loop.Trainer(record_of(config), Worker.current())
    assert isinstance(trainer.captions, CaptionEncoder)
    sizes: list[int] = []
    tower: torch.nn.Module = trainer.captions._encoder._text_tower
    tower.get_submodule("token_embedding").register_forward_pre_hook(
        lambda _module, inputs: sizes.append(len(inputs[0]))
    )
    trainer.train_step(trainer.stream.batch(0, trainer.positions))
    assert sum(sizes) > 3
    assert max(sizes) <= 3


HUNGRY = """
import resource, sys
import torch
from infra.errors import CarraraError
from training import loop
from training.parallel import Worker
from training.record import RunRecord
record = RunRecord.model_validate_json(sys.argv[1])
torch.set_num_threads(1)
trainer = loop.Trainer(record, Worker.current())
trainer.resume()
batch = trainer.stream.batch(0, trainer.positions)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 30_000_000, -1))
try:
    trainer.train_step(batch)
except CarraraError as error:
    print(type(error).__name__, error)
"""


def test_out_of_memory_names_the_setting_to_change(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> None:
    config = tiny_config(batch_size=2560, max_batch_per_worker=2560)
    command = [sys.executable, "-c", HUNGRY, record_of(config).model_dump_json()]
    told = subprocess.run(command, stdout=-1, stderr=-2, text=True, check=False).stdout
    assert "ConfigError" in told, told
    assert "out of memory in step 1, at 2560 pictures a forward pass" in told
    assert "max_batch_per_worker = 1280" in told


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's memory")
def test_out_of_a_gpus_memory_names_the_setting_to_change(
    tiny_config: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> None:
    config = tiny_config(batch_size=20_000, max_batch_per_worker=20_000)
    trainer = loop.Trainer(record_of(config), Worker.current())
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(ConfigError, match="pass max_batch_per_worker = 10000 or less"):
            trainer.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_learning_rate_warms_up_holds_and_falls_to_zero(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(num_steps=100, warmup_steps=10, decay_share=0.3, learning_rate=1.0)
    rates = [loop.learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == rates[70] == 1
    assert rates[85] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.04


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(9, 0), (100, 10), (100_000, 500)])
def test_warmup_is_a_tenth_of_a_short_run(
    tiny_config: Callable[..., Config], num_steps: int, warmup_steps: int
) -> None:
    config = tiny_config(num_steps=num_steps, warmup_steps=None, learning_rate=1.0)
    rates = [loop.learning_rate(config, step) for step in range(warmup_steps + 1)]
    rising = [(step + 1) / warmup_steps for step in range(warmup_steps)]
    assert rates == pytest.approx([*rising, 1.0])


def test_draws_are_uniform_in_t_and_new_at_every_step(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(batch_size=20_000, caption_dropout=0.25)
    shape, cpu = torch.Size((1, 1, 1)), torch.device("cpu")
    draws = draw(config, 3, shape, cpu)
    assert draws.t.min() == 0
    assert draws.t.max() == 999
    assert draws.t.float().mean().item() == pytest.approx(499.5, abs=8)
    assert draws.drops_caption.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(draw(config, 3, shape, cpu).eps, draws.eps)
    assert not torch.equal(draw(config, 4, shape, cpu).eps, draws.eps)
    part = draws.part(range(100, 200))
    assert torch.equal(part.t, draws.t[100:200])
    assert torch.equal(part.eps, draws.eps[100:200])
    assert part.eps.untyped_storage().nbytes() == part.eps.nbytes  # the others' is let go of


def test_metrics_have_a_line_every_few_steps(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(log_every=3)
    run(config)
    lines = storage.read_text(storage.join(config.run, "metrics.jsonl")).splitlines()
    # Every third step, and every checkpoint's.
    assert [json.loads(line)["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
