"""Held-out loss, grids and nearest pictures, of a real run and on a real index."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from retrieval.index import Config as IndexConfig
from retrieval.index import run as index
from training.config import Config, WatchConfig
from training.held_out import is_held_out
from training.log import read_events, read_metrics
from training.model import load_model
from training.sheet import to_picture
from training.space import unit_range
from training.train import run
from training.watching.examples import Example, read_examples
from training.watching.held_out_loss import loss_by_timestep
from training.watching.looks import read_held_out
from training.watching.nearest import EmbeddingsFinder, IndexFinder, open_finder

WATCH = WatchConfig(
    held_out_every=4,
    held_out_pictures=20,
    grid_every=8,
    grid_captions=("a cat in the snow",),
    corpus_captions=1,
    grid_pictures=2,
    grid_steps=2,
)


@pytest.fixture(scope="module")
def watched(config_of: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run of twelve steps that was looked at."""
    place = tmp_path_factory.mktemp("watched") / "run"
    config = config_of(str(place), held_out=0.3, watch=WATCH, prediction="eps", weighting="uniform")
    run(config)
    return config


def test_run_is_looked_at_as_often_as_asked(watched: Config) -> None:
    looks = read_held_out(watched.run)
    assert [line["step"] for line in looks] == [4, 8, 12]
    assert all(len(line["loss_by_t"]) == len(line["seen_loss_by_t"]) == 10 for line in looks)
    lines = {line["step"]: line for line in read_metrics(watched.run)}
    assert lines[8]["held_out_loss"] == looks[1]["loss"]
    assert "held_out_loss" not in lines[10]


def test_looks_leave_the_training_as_it_is(watched: Config, tmp_path: Path) -> None:
    alone = watched.model_copy(
        update={
            "run": str(tmp_path / "run"),
            "watch": WatchConfig(held_out_every=0, grid_every=0),
        }
    )
    run(alone)
    exact = [
        [(line["step"], line["loss"], line["grad_norm"], line["samples"]) for line in lines]
        for lines in (read_metrics(watched.run), read_metrics(alone.run))
    ]
    assert exact[0] == exact[1]


def test_grid_says_what_it_shows(watched: Config) -> None:
    url = Path(watched.run) / "samples" / "step-000008"
    told = json.loads(url.with_suffix(".json").read_text())
    assert [row["source"] for row in told["rows"]] == ["trained on", "held out", "asked for"]
    assert told["rows"][2]["caption"] == "a cat in the snow"
    assert "no embeddings; run `carrara embed" in told["nearest"]
    with Image.open(url.with_suffix(".png")) as image:
        assert json.loads(image.info["captions"])[2] == "a cat in the snow"
    assert any(event["event"] == "no nearest pictures" for event in read_events(watched.run))


def test_loss_is_of_the_checkpoints_averaged_weights_and_of_no_chance(watched: Config) -> None:
    examples = read_examples(watched, True, 20)
    assert all(is_held_out(example.uid, 0.3) for example in examples)
    model = load_model(watched.run, 12, "cpu")
    again = [loss_by_timestep(model, examples, 20).loss for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] == pytest.approx(read_held_out(watched.run)[-1]["loss"], rel=1e-5)


def test_network_that_says_nothing_loses_all_the_noise_at_every_timestep(watched: Config) -> None:
    """eps = 0 where all of it is normal noise: a loss of 1."""
    model = load_model(watched.run, 12, "cpu")
    for parameter in model.network.parameters():
        parameter.detach().zero_()
    found = loss_by_timestep(model, read_examples(watched, False, 5), 60)
    assert found.loss == pytest.approx(1, abs=0.02)
    assert found.loss_by_t == pytest.approx([1] * 10, abs=0.1)


def test_training_picture_drawn_by_heart_is_called_a_copy(
    searchable: str, example: Example
) -> None:
    picture = to_picture(unit_range(example.pixels))
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    finder = open_finder(searchable, torch.device("cpu"))
    assert isinstance(finder, EmbeddingsFinder)
    copied, other = finder.nearest([picture, noise])
    assert copied.uid == example.uid
    assert copied.is_copy
    assert copied.similarity == pytest.approx(1, abs=0.02)
    assert "a copy of" in copied.evidence
    assert not other.is_copy
    assert Image.open(io.BytesIO(copied.image)).size == (64, 64)

    index(IndexConfig(root=searchable))
    finder = open_finder(searchable, torch.device("cpu"))
    assert isinstance(finder, IndexFinder)
    (copied,) = finder.nearest([picture])
    assert copied.uid == example.uid
    assert copied.is_copy
