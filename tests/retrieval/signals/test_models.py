"""Columns that models gave name these models and the digests of their weights."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.cluster import Workers
from pipeline import score
from pipeline.corpus import Manifest
from retrieval import embed
from tests.retrieval.signals.test_heads import DIM, write_head

HERE = Workers(local=True)
BY_EMBEDDINGS = ("clip", "image_based", "clip_safety", "masked_clip")


@pytest.fixture(scope="module")
def scored(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
) -> str:
    """Three samples, scored by every signal that has a model to hand here."""
    folder = tmp_path_factory.mktemp("models")
    root = str(folder / "corpus")
    make_corpus(root, num_shards=1, num_samples=3)
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    np.save(folder / "targets.npy", np.eye(DIM, dtype=np.float32)[:1])
    write_head(folder / "safety.pth", "H/14 safety")
    options = {
        "targets": str(folder / "targets.npy"),
        "clip-safety-head": str(folder / "safety.pth"),
    }
    for signals in (("text_overlay",), BY_EMBEDDINGS):  # masked_clip asks where the text stands
        score.run(score.Config(root=root, signals=signals, options=options, workers=HERE))
    return root


def models_of(root: str, signal: str) -> dict[str, dict[str, str]]:
    """By column."""
    schema = pq.read_schema(f"{root}/columns/{signal}/00000.parquet")
    columns = [name for name in schema.names if name != "uid"]
    return {
        name: json.loads((schema.field(name).metadata or {}).get(b"carrara.models", b"{}"))
        for name in columns
    }


@pytest.mark.parametrize("signal", ["text_overlay", *BY_EMBEDDINGS])
def test_every_column_names_a_model_and_the_digest_of_its_weights(scored: str, signal: str) -> None:
    by_column = models_of(scored, signal)
    assert by_column
    for column, models in by_column.items():
        assert models, column
        for name, digest in models.items():
            assert re.fullmatch(r"[0-9a-f]{64}", digest), (column, name)


@pytest.mark.parametrize("signal", BY_EMBEDDINGS)
def test_what_follows_from_embeddings_names_their_encoder(
    scored: str, tiny_encoder: str, signal: str
) -> None:
    weights = (Path(tiny_encoder) / "open_clip_model.safetensors").read_bytes()
    for models in models_of(scored, signal).values():
        assert models[tiny_encoder] == hashlib.sha256(weights).hexdigest()


def test_a_head_and_a_reader_of_text_are_named_beside_the_encoder(
    scored: str, tiny_encoder: str
) -> None:
    head = Path(scored).parent / "safety.pth"
    (safety,) = models_of(scored, "clip_safety").values()
    assert safety.keys() == {tiny_encoder, "safety.pth"}
    assert safety["safety.pth"] == hashlib.sha256(head.read_bytes()).hexdigest()
    (masked,) = models_of(scored, "masked_clip").values()
    readers = models_of(scored, "text_overlay")["text_boxes"]
    assert masked.items() > readers.items()
    assert all(name.startswith("rapidocr") for name in readers)
