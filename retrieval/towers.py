"""Text towers for other languages that land in an encoder's own space: one picture index for all.

Reads   retrieval/models/<tower>/   tower.json, tokenizer.json, model.safetensors
        or open_clip's multilingual models, as retrieval.encoder loads them

A tower belongs to one encoder, its teacher, and to no other weights of it: vectors of two spaces
can be compared without an error and mean nothing.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file
from tokenizers import Tokenizer

from infra.errors import ConfigError, ConflictError, InputError
from infra.records import read_record
from retrieval.embeddings import EMBEDDED_ENCODER
from retrieval.encoder import TEXT_BATCH, Encoder, load_encoder
from retrieval.text_transformer import Architecture, TextTransformer
from retrieval.weights import EMBEDDED_TOWERS, sha256

TOWERS = {
    EMBEDDED_ENCODER: "Carrara-S-multilingual/emoji_names",
    # Trained with the other's image tower, frozen: huggingface.co/laion/
    # CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k, "Training Procedure".
    "ViT-H-14/laion2b_s32b_b79k": "xlm-roberta-large-ViT-H-14/frozen_laion5b_s13b_b90k",
}
"""By encoder: the tower that was taught to land in its space."""
MULTILINGUAL_MODELS = ("xlm-roberta-", "nllb-clip-")
MULTILINGUAL_MARKS = ("-SigLIP2", "-SigLIP-i18n", "-worldwide")
"""open_clip's models whose own text tower reads many languages: by their text tower's
vocabulary (XLM-R, NLLB, XLM-V, Gemma, mT5) in open_clip 3.3's configurations."""
SUGGESTED = "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"
MAX_CHARACTERS = 2000
"""No text's first tokens reach so far; more would only be read and cut."""


class TowerConfig(BaseModel):
    """tower.json"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    """The encoder in whose space it lands."""
    teacher_digest: str
    """sha256 of the teacher's weights, hex."""
    languages: list[str]
    """Codes of the CLDR that it was taught."""
    architecture: Architecture


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
    model, _, rest = encoder.partition("/")
    if rest and (
        model.startswith(MULTILINGUAL_MODELS) or any(m in model for m in MULTILINGUAL_MARKS)
    ):
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
    if name in EMBEDDED_TOWERS:
        return EmbeddedTower(name, EMBEDDED_TOWERS[name])
    return EncoderTower(name, load_encoder(name, device))


class EmbeddedTower:
    """One that ships with Carrara; on the CPU, from any number of threads."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._weights = folder / "model.safetensors"
        self._config = read_record(str(folder / "tower.json"), TowerConfig)
        self.languages: Sequence[str] = self._config.languages
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model = TextTransformer(self._config.architecture).eval()
        # Stored as float16; copied into float32 here.
        self._model.load_state_dict(load_file(self._weights))

    @property
    def dim(self) -> int:
        return self._config.architecture.embed_dim

    @cached_property
    def weights_digest(self) -> str:
        return sha256(self._weights)

    def check_space(self, weights_digest: str) -> None:
        _check(self.name, self._config.teacher, self._config.teacher_digest, weights_digest)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), TEXT_BATCH):
            batch = texts[start : start + TEXT_BATCH]
            rows[start : start + len(batch)] = self._model(self._tokens(batch)).numpy()
        return rows

    def _tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, L] int64, 0 behind each text's end; what is beyond the context's length is cut."""
        found = self._tokenizer.encode_batch([_readable(text) for text in texts])
        for text, encoding in zip(texts, found, strict=True):
            if not any(encoding.ids):
                raise InputError(f"text {text[:40]!r}: no words; expected what to look for")
        return torch.tensor([encoding.ids for encoding in found])


class EncoderTower:
    """open_clip's: the text tower of a whole model."""

    languages: Sequence[str] = ()

    def __init__(self, name: str, encoder: Encoder) -> None:
        self.name = name
        self._encoder = encoder

    @property
    def dim(self) -> int:
        return self._encoder.dim

    @property
    def weights_digest(self) -> str:
        return self._encoder.weights_digest

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._encoder.encode_texts(texts)

    def check_space(self, weights_digest: str) -> None:
        # What LAION's tower was taught by is known by name only.
        if self.name not in TOWERS.values():
            _check(self.name, self.name, self.weights_digest, weights_digest)


def _check(name: str, teacher: str, expected: str, weights_digest: str) -> None:
    if weights_digest != expected:
        raise ConflictError(
            f"text tower {name!r}: belongs to {teacher!r} with weights {expected[:16]}, the "
            f"pictures were embedded with {weights_digest[:16]}; run `carrara embed` and `carrara "
            "index` again with --overwrite, or search without `multilingual`"
        )


def _readable(text: str) -> str:
    """Valid Unicode in few characters: JSON and command lines can hold halves of surrogate pairs,
    and a megabyte would be split into pieces before it is cut."""
    text = " ".join(text[: 4 * MAX_CHARACTERS].split())[:MAX_CHARACTERS]
    return text.encode("utf-8", "replace").decode("utf-8")
