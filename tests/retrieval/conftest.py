"""Tiny encoders with random weights, in the form that open_clip's own folders have."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.clip_like import write_corpus
from retrieval import index

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "patch_size": 8,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "head_width": 32}
HUGGING_FACE = {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp", "context_length": 24}


def write_tiny_encoder(folder: Path, seed: int = 0) -> str:
    """An untrained model in the form that open_clip's own folders have; its name is the folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = open_clip.CLIP(**TINY_CLIP).state_dict()
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return str(folder)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


def write_encoder(folder: Path, text: dict[str, Any], **model: Any) -> str:
    """One with this text tower; its name is the folder."""
    import open_clip
    from safetensors.torch import save_file

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
    return str(folder)


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., str]:
    """make_encoder(folder, text_cfg, **model_cfg) writes one and gives its name."""
    return write_encoder


@pytest.fixture(scope="session")
def multilingual_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With a small XLM-R as the text tower and a tokenizer of a few words, all in one folder."""
    transformers = importlib.import_module("transformers")  # whose annotations are not complete
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("multilingual")
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


@pytest.fixture(scope="session")
def copies_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An indexed corpus of embeddings alone: six hundred near copies of its first row, twelve other
    rows of a hundred and twenty each, and twenty that are like no other."""
    root = tmp_path_factory.mktemp("copies") / "copies"
    rng = np.random.default_rng(0)
    firsts = rng.standard_normal((33, 64), np.float32) / 8
    rows = np.repeat(firsts, [600, *[120] * 12, *[1] * 20], axis=0)
    rows += 0.02 * rng.standard_normal(rows.shape, np.float32)
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    write_corpus(root, [(units, units)])
    index.run(index.Config(root=str(root), num_queries=5))
    return str(root)
