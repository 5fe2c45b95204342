"""Text towers for other languages that land in an encoder's own space: one picture index for all.

    tower = tower_of(manifest.encoder, manifest.weights_digest)
    hits = retriever.search(tower.encode_texts(["gato", "кошка"]), k=10)

A tower belongs to one encoder, its teacher, and to no other weights of it: vectors of two spaces
can be compared without an error and mean nothing. This module says which tower belongs to which
encoder and imports no model library; the towers themselves are in retrieval/encoding/text_tower.py.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from infra.errors import ConfigError
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.weights import EMBEDDED_TOWERS, HUB_PREFIX

TOWERS = {
    EMBEDDED_ENCODER: "Carrara-S-multilingual/emoji_names",
    # Trained with the other's image tower, frozen: huggingface.co/laion/
    # CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k, "Training Procedure".
    "ViT-H-14/laion2b_s32b_b79k": "xlm-roberta-large-ViT-H-14/frozen_laion5b_s13b_b90k",
}
"""By encoder: the tower that was taught to land in its space."""
MULTILINGUAL = ("xlm-roberta-", "nllb-clip-", "-SigLIP2", "-SigLIP-i18n", "-worldwide")
"""In the names of open_clip's models whose own text tower reads many languages, as their
vocabularies tell in open_clip 3.3's configurations (XLM-R, NLLB, Gemma, mT5, XLM-V)."""
SUGGESTED = "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"


class Tower(Protocol):
    name: str
    languages: Sequence[str]
    """Codes that it was taught; empty where its makers give no list."""

    @property
    def dim(self) -> int: ...
    @property
    def weights_digest(self) -> str:
        """sha256 of the weights file, hex."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32, unit rows. Raises InputError for a text without words."""

    def check_space(self, weights_digest: str) -> None:
        """Raises ConflictError unless pictures embedded with these weights share its space."""


def multilingual_of(encoder: str) -> str | None:
    """The text tower for other languages in that encoder's space: the encoder's own name where
    its own text tower is one, None where there is none."""
    model, _, rest = encoder.removeprefix(HUB_PREFIX).partition("/")
    if any(mark in (rest if encoder.startswith(HUB_PREFIX) else model) for mark in MULTILINGUAL):
        return encoder
    return TOWERS.get(encoder)


def tower_of(encoder: str, weights_digest: str, device: str = "cpu") -> Tower:
    """For pictures that were embedded by `encoder` with these weights.

    Raises ConfigError if it has no tower, ConflictError if its tower was taught by other weights.
    """
    name = multilingual_of(encoder)
    if name is None:
        raise ConfigError(
            f"encoder {encoder!r}: has no multilingual text tower; leave `multilingual` out, or "
            f"embed and index with a multilingual encoder, such as {SUGGESTED}"
        )
    tower = load_tower(name, device)
    tower.check_space(weights_digest)
    return tower


def load_tower(name: str, device: str = "cpu") -> Tower:
    """By a name that `multilingual_of` gave; `device` is for open_clip's, the embedded one is
    small. Raises InputError for weights that can't be had."""
    from retrieval.encoding.text_tower import EmbeddedTower, EncoderTower

    if name in EMBEDDED_TOWERS:
        return EmbeddedTower(name, EMBEDDED_TOWERS[name])
    from retrieval.encoding.encoder import load_encoder

    return EncoderTower(name, load_encoder(name, device))
