"""Captions without padding: the same vectors as with it, whatever the text tower."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infra.errors import InputError
from retrieval.encoding.encoder import Encoder, load_encoder
from retrieval.encoding.text_padding import lengths_needed

TEXTS = ["red cat", "chat", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "", "chat rouge"]

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}

HUGGING_FACE = {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp", "context_length": 24}


def write_encoder(folder: Path, text: dict[str, Any], **model: Any) -> Encoder:
    """An untrained model with this text tower, in open_clip's form."""
    import open_clip

    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text, **model}
    folder.mkdir(exist_ok=True)
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing})
    )
    untrained = text | ({"hf_model_pretrained": False} if "hf_model_name" in text else {})
    is_custom = model.pop("custom_text", False) or "hf_model_name" in text
    make = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    state = make(32, vision_cfg=VISION, text_cfg=untrained).state_dict()
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return load_encoder(str(folder))


def write_multilingual_encoder(folder: Path) -> Encoder:
    """With a small XLM-R as the text tower and a tokenizer of a few words, all in one folder."""
    transformers = importlib.import_module("transformers")  # whose annotations are not complete
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir()
    words = ["<s>", "<pad>", "</s>", "<unk>", "cat", "red", "chat", "rouge", *"abcdefghijklmnop"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ends)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **names
    ).save_pretrained(folder)
    transformers.XLMRobertaConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        type_vocab_size=1,
    ).save_pretrained(folder)
    place = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
    return write_encoder(folder, HUGGING_FACE | place)


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
    name: str, text: dict[str, Any], is_shortened: bool, tmp_path: Path
) -> None:
    encoder = write_encoder(tmp_path / "encoder", text, custom_text=name != "CLIP")
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), with_padding(encoder), atol=1e-6)
    tokens = encoder._tokenizer(TEXTS)
    lengths = lengths_needed(encoder._text_tower, tokens).tolist()
    assert lengths == ([4, 3, 24, 2, 4] if is_shortened else [24] * 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
def test_a_multilingual_tower_of_transformers(tmp_path: Path) -> None:
    encoder = write_multilingual_encoder(tmp_path / "encoder")
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
