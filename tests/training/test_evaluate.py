import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.cluster import Workers
from infra.errors import ConfigError, InputError
from training import evaluate

LOCAL = Workers(local=True)


def scores(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "scores.json").read_text())
    return found


def test_a_run_is_swept_over_guidance_and_scored_beside_the_corpus_itself(
    trained_run: str, shared_corpus: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"run": trained_run, "root": shared_corpus, "num_images": 12}
    settings |= {"guidance_scale": (1.0, 4.0), "num_steps": 3, "num_bootstraps": 20}
    config = evaluate.Config(**settings, output=str(tmp_path / "out"), workers=LOCAL)
    summary = evaluate.run(config)
    found = scores(tmp_path / "out")
    assert [row["pictures"] for row in found["rows"]] == [
        *("the corpus itself", "drawn, guidance 1", "drawn, guidance 4")
    ]
    assert [row["guidance_scale"] for row in found["rows"]] == [None, 1.0, 4.0]
    for row in found["rows"]:
        for name, score in row["scores"].items():
            assert score["low"] <= score["value"] <= score["high"], name
    real, drawn, _ = (row["scores"] for row in found["rows"])
    assert real["nearest_distance"]["value"] > 0  # to another than itself
    assert real["frechet"]["value"] < drawn["frechet"]["value"]
    assert drawn.keys() == real.keys() >= {"kid", "mmd", "clip_similarity", "retrieval_at_1"}
    (digest,) = found["extractors"].values()
    assert len(digest) == 64
    assert found["image_size"] == 16
    for name in ("trade-off", "nearest", "scores"):
        assert Path(summary.outputs[name]).stat().st_size > 0
    with Image.open(summary.outputs["nearest"]) as sheet:
        assert sheet.width > 6 * 128

    evaluate.run(config)  # it draws nothing twice and comes to the same scores
    assert scores(tmp_path / "out") == found


def test_a_set_of_pictures_is_scored_and_a_copy_of_the_corpus_is_found_out(
    shared_corpus: str, tiny_text_encoder: str, tmp_path: Path
) -> None:
    config = evaluate.Config(
        run=shared_corpus,
        root=shared_corpus,
        extractors=(tiny_text_encoder,),
        num_images=24,
        num_bootstraps=20,
        output=str(tmp_path / "out"),
        workers=LOCAL,
    )
    evaluate.run(config)
    (row,) = scores(tmp_path / "out")["rows"]
    values = {name: score["value"] for name, score in row["scores"].items()}
    assert values["frechet"] == pytest.approx(0, abs=1e-6)
    assert values["precision"] == values["recall"] == 1
    assert values["near_share"] == 1
    assert values["nearest_distance"] == pytest.approx(0, abs=1e-6)
    assert values["kid"] < 0  # unbiased, and the same pictures: below 0 by their own spread
    assert row["distance"] == "Frechet distance"


def test_mistakes_are_named(shared_corpus: str, tmp_path: Path) -> None:
    def fail(**changes: Any) -> None:
        settings: dict[str, Any] = {"run": shared_corpus, "root": shared_corpus, "workers": LOCAL}
        evaluate.run(evaluate.Config(**(settings | changes), output=str(tmp_path / "out")))

    with pytest.raises(ConfigError, match="is no training run, so nothing is drawn"):
        fail(guidance_scale=(1.0, 2.0))
    with pytest.raises(InputError, match="unknown; the nearest are"):
        fail(extractors=("no such encoder",))
    with pytest.raises(InputError, match="no pictures; expected a corpus, or a folder"):
        fail(run=str(tmp_path / "nothing"), extractors=("Carrara-S/emoji_clipart",))
    few = tmp_path / "few"
    few.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(few / f"{number}.png")
    for place in ("root", "training"):
        with pytest.raises(InputError, match="few: 3 pictures; expected at least 8 to compare"):
            fail(**{place: str(few)}, extractors=("Carrara-S/emoji_clipart",))
    assert not (tmp_path / "out").exists()
