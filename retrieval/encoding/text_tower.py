"""Text towers at work: words in many languages -> unit vectors of another encoder's space.

Reads   retrieval/models/<tower>/   tower.json, tokenizer.json, model.safetensors
        or open_clip's multilingual models, as retrieval.encoding.encoder loads them
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file
from tokenizers import Tokenizer

from infra.errors import ConflictError, InputError
from infra.records import read_record
from retrieval.encoding.encoder import TEXT_BATCH, Encoder
from retrieval.encoding.text_bag import Architecture, TextBag
from retrieval.encoding.towers import TOWERS
from retrieval.encoding.weights import sha256

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


class EmbeddedTower:
    """One that ships with Carrara; on the CPU, from any number of threads."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._weights = folder / "model.safetensors"
        self._config = read_record(str(folder / "tower.json"), TowerConfig)
        self.languages: Sequence[str] = self._config.languages
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model = TextBag(self._config.architecture).eval()
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
