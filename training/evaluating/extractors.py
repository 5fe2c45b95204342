"""Feature extractors by name: what makes numbers of pictures before pictures are compared.

    MODEL/TAG ...       any encoder of retrieval/encoding: unit rows of its image tower
    inception           the Inception of FID, from where torch-fidelity keeps its weights
    inception/FILE      the same weights in a file

Only distances over the last are called FID: the name stands for those weights and no others.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from infra.errors import ConfigError
from retrieval.encoding.encoder import load_encoder
from retrieval.encoding.weights import weights_digest

INCEPTION = "inception"
INCEPTION_SHA256 = "6726825d"
"""How sha256 of the weights begins: their name ends in it, as torch.hub's names do."""
INCEPTION_LAYER = "2048"
"""The last pooling, of which FID is (Heusel et al. 2017)."""
BATCH = 64


class Extractor(Protocol):
    """Shapes: n pictures or captions, d features."""

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """`[n, d]` float32."""

    def texts(self, captions: Sequence[str]) -> np.ndarray | None:
        """`[n, d]` float32 in the same space; None where captions have no place."""


def load_extractor(name: str, device: str = "auto") -> Extractor:
    """Raises InputError for an encoder that can't be had, ConfigError for Inception's weights."""
    if _is_inception(name):
        return Inception(inception_weights(name), device)
    return EncoderFeatures(name, device)


def extractor_digest(name: str) -> str:
    """sha256 of the weights, hex, without loading them; raises as `load_extractor` does."""
    if _is_inception(name):
        return _sha256(inception_weights(name))
    return weights_digest(name)


def distance_name(name: str) -> str:
    """What the Frechet distance over these features is called."""
    return "FID" if _is_inception(name) else "Frechet distance"


def kid_gamma(name: str) -> float:
    """Of KID's kernel (gamma x.y + 1)^3: 1/d for Inception's, as published. An encoder's rows are
    unit vectors, with which 1/d would leave the kernel all but constant."""
    return 1 / int(INCEPTION_LAYER) if _is_inception(name) else 1.0


class EncoderFeatures:
    """An encoder's unit rows."""

    def __init__(self, name: str, device: str) -> None:
        self._encoder = load_encoder(name, device)

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return self._encoder.encode_images(pictures)

    def texts(self, captions: Sequence[str]) -> np.ndarray | None:
        return self._encoder.encode_texts(captions)


class Inception:
    """torch-fidelity's port of the network that FID is measured with, its resizing included."""

    def __init__(self, weights: Path, device: str) -> None:
        self._weights = weights
        cuda = device == "auto" and torch.cuda.is_available()
        self._device = "cuda" if cuda else "cpu" if device == "auto" else device

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        rows = []
        for start in range(0, len(pictures), BATCH):
            pixels = np.stack([np.asarray(one) for one in pictures[start : start + BATCH]])
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(self._device)
            with torch.inference_mode():
                (features,) = self._network(batch)
            rows.append(features.float().cpu().numpy())
        return np.concatenate(rows)

    def texts(self, captions: Sequence[str]) -> np.ndarray | None:
        del captions
        return None

    @cached_property
    def _network(self) -> Any:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        return FeatureExtractorInceptionV3(
            "inception-v3-compat",
            [INCEPTION_LAYER],
            feature_extractor_weights_path=str(self._weights),
        ).to(self._device)


def inception_weights(name: str) -> Path:
    """Where they are; raises ConfigError where they, or torch-fidelity, are not. They are never
    fetched from here."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        raise ConfigError(
            f"--extractors {name}: needs the package torch-fidelity; `pip install torch-fidelity`"
        ) from None
    _, _, file = name.partition("/")
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    path = Path(file) if file else kept
    if not path.is_file():
        raise ConfigError(
            f"--extractors {name}: no weights at {path}; fetch {URL_INCEPTION_V3} and put it "
            f"there, or name its file: --extractors {INCEPTION}/path/to/{kept.name}"
        )
    if not _sha256(path).startswith(INCEPTION_SHA256):
        raise ConfigError(
            f"--extractors {name}: {path} holds other weights than FID's (their sha256 begins with "
            f"{INCEPTION_SHA256}); fetch {URL_INCEPTION_V3} anew"
        )
    return path


def _is_inception(name: str) -> bool:
    return name.partition("/")[0] == INCEPTION


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
