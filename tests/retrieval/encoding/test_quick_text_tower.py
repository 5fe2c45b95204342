import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import Encoder, load_encoder
from retrieval.encoding.quick_text_tower import QuickTextTower, quick_text_tower
from retrieval.encoding.weights import EMBEDDED_FOLDERS

CAPTIONS = Path(__file__).parents[3] / "examples" / "emoji" / "captions.csv"
HARD = [
    *("it's  &amp;amp; a “café” naïve 日本語 😀 x<start_of_text>y 12345 re'll THE", "a" * 500),
    *("word " * 100, "ﬁﬃ ½ \u200b\ufeff zero", "I'VE don't 'S", "x <end_of_text> y", "."),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(EMBEDDED_ENCODER)


@pytest.fixture(scope="module")
def tower() -> QuickTextTower:
    tower = quick_text_tower(EMBEDDED_ENCODER)
    assert tower is not None
    return tower


def test_words_land_where_the_encoder_puts_them(tower: QuickTextTower, encoder: Encoder) -> None:
    with CAPTIONS.open(encoding="utf-8", newline="") as file:
        texts = [row["caption"] for row in csv.DictReader(file)][::40] + HARD
    np.testing.assert_allclose(tower.encode_texts(texts), encoder.encode_texts(texts), atol=1e-6)
    assert tower.weights_digest == encoder.weights_digest


@pytest.fixture(scope="module")
def tokenizer() -> open_clip.tokenizer.SimpleTokenizer:
    return open_clip.tokenizer.SimpleTokenizer(context_length=32)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_its_tokens_are_open_clips(
    tower: QuickTextTower, tokenizer: open_clip.tokenizer.SimpleTokenizer, text: str
) -> None:
    (expected,) = tokenizer([text]).tolist()
    assert tower._tokens(text) == expected[: expected.index(tokenizer.eot_token_id) + 1]


@pytest.mark.parametrize("is_quick_gelu", [False, True])
def test_either_activation_is_the_encoders(
    tmp_path: Path, tiny_encoder: str, is_quick_gelu: bool
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = is_quick_gelu
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tower = quick_text_tower(str(folder))
    assert tower is not None
    expected = load_encoder(str(folder)).encode_texts(["a cat", "a dog in the snow"])
    np.testing.assert_allclose(
        tower.encode_texts(["a cat", "a dog in the snow"]), expected, atol=1e-6
    )


def test_another_kind_of_tower_is_not_computed(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(EMBEDDED_FOLDERS[EMBEDDED_ENCODER], folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["pool_type"] = "last"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert quick_text_tower(str(folder)) is None


def test_it_needs_neither_torch_nor_open_clip() -> None:
    code = (
        "import sys; from retrieval.encoding.quick_text_tower import quick_text_tower as make;"
        f"make({EMBEDDED_ENCODER!r}).encode_texts(['a cat']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'open_clip', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
