import io
import json
import zipfile
from pathlib import Path

import nudenet.nudenet
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from infra.cluster import Workers
from pipeline import score
from pipeline.corpus import read_columns
from pipeline.signals.safety import GROUPS, LABELS, SafetySignal, group_scores

EMOJI = Path(__file__).parents[3] / "examples" / "emoji" / "pictures.zip"


def emoji(name: str) -> Image.Image:
    """On white."""
    with zipfile.ZipFile(EMOJI) as archive:
        picture = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return page.convert("RGB")


@pytest.fixture(scope="module")
def signal() -> SafetySignal:
    return SafetySignal("/nowhere", {})


def test_the_classes_are_the_package_s_own_in_its_order() -> None:
    assert vars(nudenet.nudenet)["__labels"] == list(LABELS)
    assert {label for labels in GROUPS.values() for label in labels} <= set(LABELS)


@pytest.mark.parametrize("border", [(0, 0, 0, 0), (0, 0, 20, 0), (0, 15, 0, 15)])
@pytest.mark.parametrize("name", ["1f64e-200d-2642-fe0f.png", "1f52e.png"])
def test_the_highest_confidence_is_the_package_s_own(
    name: str, border: tuple[int, int, int, int], signal: SafetySignal
) -> None:
    picture = ImageOps.expand(emoji(name), border, "white")
    file = io.BytesIO()
    picture.save(file, "PNG")
    detections = nudenet.NudeDetector().detect(file.getvalue())
    best = max(detections, key=lambda one: float(one["score"]))
    (confidences,) = signal.confidences([picture])
    assert LABELS[int(confidences.argmax())] == best["class"]
    assert float(confidences.max()) == pytest.approx(best["score"], abs=1e-5)


def test_a_picture_scores_the_same_alone_and_among_others(signal: SafetySignal) -> None:
    wide = emoji("1f52e.png").resize((300, 90))
    alone = signal.confidences([wide])
    among = signal.confidences([emoji("1f483.png"), wide, emoji("1f491.png")])
    assert np.array_equal(alone[0], among[1])


def test_a_group_scores_as_its_most_likely_class() -> None:
    confidences = np.zeros(len(LABELS))
    confidences[LABELS.index("BUTTOCKS_COVERED")] = 0.7
    confidences[LABELS.index("ANUS_EXPOSED")] = 0.4
    confidences[LABELS.index("FACE_MALE")] = 0.9
    scores = group_scores(confidences)
    assert (scores["nudity_exposed"], scores["nudity_covered"]) == (0.4, 0.7)
    assert (scores["skin_exposed"], scores["face"], scores["nudity_max"]) == (0, 0.9, 0.7)


def test_emoji_are_safe_and_the_columns_say_who_says_so(small_corpus: str) -> None:
    score.run(score.Config(root=small_corpus, signals=("safety",), workers=Workers(local=True)))
    table = read_columns(small_corpus, "safety")
    exposed = np.array(table["nudity_exposed"].to_pylist())
    assert np.median(exposed) < 0.05
    assert exposed.max() < 0.3
    schema = pq.read_schema(f"{small_corpus}/columns/safety/00000.parquet")
    for name in (*GROUPS, "nudity_max"):
        models = json.loads(schema.field(name).metadata[b"carrara.models"])
        ((model, sha256),) = models.items()
        assert model.startswith("nudenet ")
        assert model.endswith(" 320n.onnx")
        assert len(sha256) == 64
