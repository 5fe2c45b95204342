"""Captions without padding: the same vectors as with it, whatever the text tower."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import InputError
from retrieval.encoding.encoder import Encoder, load_encoder
from retrieval.encoding.text_padding import lengths_needed

MakeEncoder = Callable[..., str]
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TEXTS = ["red cat", "chat", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "", "chat rouge"]


def with_padding(encoder: Encoder) -> np.ndarray:
    with torch.inference_mode():
        features = encoder._model.encode_text(encoder._tokenizer(TEXTS), normalize=True)
    return np.asarray(features)


@pytest.mark.parametrize(
    ("name", "text", "is_shortened"),
    [
        ("CLIP", TEXT, True),
        ("tower of its own", TEXT | {"proj_bias": True}, True),
        # SigLIP's towers attend to the padding and read the last state.
        ("SigLIP", TEXT | {"no_causal_mask": True, "pool_type": "last"}, False),
    ],
)
def test_open_clips_towers(
    name: str,
    text: dict[str, Any],
    is_shortened: bool,
    tmp_path: Path,
    make_encoder: MakeEncoder,
) -> None:
    made = make_encoder(tmp_path / "encoder", text, custom_text=name != "CLIP")
    encoder = load_encoder(made)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), with_padding(encoder), atol=1e-6)
    tokens = encoder._tokenizer(TEXTS)
    lengths = lengths_needed(encoder._text_tower, tokens).tolist()
    assert lengths == ([4, 3, 24, 2, 4] if is_shortened else [24] * 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
def test_a_multilingual_tower_of_transformers(multilingual_encoder: str) -> None:
    encoder = load_encoder(multilingual_encoder)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), with_padding(encoder), atol=1e-6)
    lengths = lengths_needed(encoder._text_tower, encoder._tokenizer(TEXTS)).tolist()
    assert lengths == [4, 3, 24, 2, 4]


def test_a_tower_that_transformers_is_missing_for_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    config = {"model_cfg": {"text_cfg": {"hf_model_name": "xlm-roberta-base"}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InputError, match="pip install transformers") as raised:
        load_encoder(str(folder))
    assert "\n" not in str(raised.value)
