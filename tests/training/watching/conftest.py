"""A corpus in which the nearest picture can be looked up."""

from collections.abc import Callable

import pytest

from infra.cluster import Workers
from pipeline.corpus import Manifest
from retrieval.embed import Config as EmbedConfig
from retrieval.embed import run as embed
from training.config import Config
from training.watching.examples import Example, read_examples


@pytest.fixture(scope="module")
def searchable(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Manifest],
    tiny_text_encoder: str,
) -> str:
    """With embeddings, and no index yet."""
    root = str(tmp_path_factory.mktemp("searchable"))
    make_corpus(root)
    local = Workers(local=True)
    embed(EmbedConfig(root=root, encoder=tiny_text_encoder, workers=local, device="cpu"))
    return root


@pytest.fixture(scope="module")
def example(searchable: str, config_of: Callable[..., Config]) -> Example:
    """One of its samples."""
    config = config_of("unused", root=searchable, image_size=64, held_out=0.0)
    return read_examples(config, False, 4)[3]
