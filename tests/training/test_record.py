from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.cluster import Workers
from infra.errors import CarraraError, ConflictError, InputError
from pipeline.corpus import Manifest
from training.checkpoint import complete_steps
from training.config import Config
from training.network import flops_per_image
from training.record import read_record
from training.train import run


def test_finished_run_is_left_alone(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    assert run(config).details["already_complete"] is False
    before = {p: p.stat().st_mtime_ns for p in Path(config.run).rglob("*") if p.is_file()}
    summary = run(config)
    assert summary.details["already_complete"] is True
    assert before == {p: p.stat().st_mtime_ns for p in Path(config.run).rglob("*") if p.is_file()}


def test_what_the_network_costs_is_told(
    tiny_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    details = run(config).details
    cost = flops_per_image(config, text_width=16)
    assert details["forward_flops_per_image"] == cost.forward
    assert details["training_flops_per_image"] == cost.training
    told = f"{details['num_parameters']:,} parameters, {cost.training / 1e9:.2f} GFLOP a trained im"
    assert told in capsys.readouterr().err


def test_settings_that_differ_are_named_and_nothing_is_touched(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config()
    run(config)
    unet = config.unet.model_copy(update={"channels": 16})
    with pytest.raises(ConflictError, match=r"learning_rate = 0\.0002, now 0\.001; unet"):
        run(tiny_config(learning_rate=1e-3, unet=unet))
    assert complete_steps(config.run) == [8, 12]
    # Where and how fast is another matter.
    run(tiny_config(max_batch_per_worker=4, checkpoint_every=3))


def test_run_on_another_corpus_is_a_conflict_unless_overwritten(
    tiny_config: Callable[..., Config], tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> None:
    run(tiny_config())
    other = str(tmp_path / "other")
    make_corpus(other, num_shards=1)
    with pytest.raises(ConflictError, match="a run on another corpus"):
        run(tiny_config(root=other))
    assert run(tiny_config(root=other, overwrite=True)).details["already_complete"] is False


def test_same_corpus_at_another_place_is_no_conflict(
    tiny_config: Callable[..., Config], small_corpus: str, tmp_path: Path
) -> None:
    run(tiny_config(root=small_corpus))
    moved = tmp_path / "moved"
    Path(small_corpus).rename(moved)
    assert run(tiny_config(root=str(moved))).details["already_complete"] is True


def test_folder_that_holds_something_else_is_not_touched(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ConflictError, match=r"not empty and not a training run \(it holds 'thes"):
        run(tiny_config(overwrite=True))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_written_configuration_can_be_used_again(tiny_config: Callable[..., Config]) -> None:
    import tomllib

    config = tiny_config()
    run(config)
    with (Path(config.run) / "config.toml").open("rb") as file:
        settings = tomllib.load(file)["train"]
    assert Config(**settings).digest() == config.digest()
    assert read_record(config.run).config == config


@pytest.mark.parametrize(
    "mistake",
    [
        {"encoder": "ViT-B-32/no-such-weights"},
        {"schedule": "sigmoid"},
        {"image_size": 17},
        {"selection": "missing"},
        {"batch_size": 1, "workers": Workers(num_workers=2)},
    ],
    ids=lambda mistake: next(iter(mistake)),
)
def test_mistake_in_the_settings_leaves_a_run_as_it_was(
    tiny_config: Callable[..., Config], mistake: dict[str, Any]
) -> None:
    config = tiny_config()
    run(config)
    with pytest.raises(CarraraError):
        run(tiny_config(overwrite=True, **mistake))
    assert read_record(config.run).config == config
    assert complete_steps(config.run) == [8, 12]


def test_place_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training run here"):
        read_record(str(tmp_path))
