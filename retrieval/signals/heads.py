"""Scores by a small head on the pictures' embeddings: LAION's safety classifier and aesthetics.

    carrara score ROOT --signals clip_safety --options.clip-safety-head PATH
    carrara score ROOT --signals aesthetic --options.aesthetic-head PATH

Reads   ROOT/embeddings/<encoder>/, and a head's weights: a state dict as torch or safetensors
        saves it (LAION's own files), on any fsspec URL; never pickled code

A head knows only the space that it was trained in: LAION's heads belong to OpenAI's ViT-L/14 (768
numbers) and OpenCLIP's ViT-H/14 (1024). The number of numbers is checked; the rest is the user's.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from infra import storage
from infra.errors import ConfigError, InputError
from pipeline.corpus import Shard
from pipeline.score import Options
from retrieval.captions.corpus import EmbeddedCorpus

State = Mapping[str, np.ndarray]
"""Tensors by name, float32."""


@dataclass(frozen=True)
class Architecture:
    """Linear layers one after the other, as a state dict names them."""

    layers: tuple[str, ...]
    num_relus: int
    """So many of the first layers are followed by a ReLU."""
    norm: str = ""
    """Of the input's mean and variance, where it is standardised."""
    sigmoid: bool = False

    @property
    def tensors(self) -> set[str]:
        """Names that its state dict has, all of them and no other."""
        weights = {name for layer in self.layers for name in (f"{layer}weight", f"{layer}bias")}
        return weights | ({f"{self.norm}mean", f"{self.norm}variance"} if self.norm else set())


def _numbered(*places: int) -> tuple[str, ...]:
    return tuple(f"layers.{place}." for place in places)


CLIP_SAFETY = (
    # LAION-AI/CLIP-based-NSFW-Detector, clip_autokeras_binary_nsfw.pth (ViT-L/14).
    Architecture(
        layers=("linear_1.", "linear_2.", "linear_3.", "linear_4."),
        num_relus=3,
        norm="norm.",
        sigmoid=True,
    ),
    # The same repository, h14_nsfw.pth: no ReLU before the last layer and no sigmoid behind it.
    Architecture(layers=_numbered(0, 3, 6, 9, 12, 15, 16), num_relus=5),
)

AESTHETIC = (
    # LAION-AI/aesthetic-predictor, sa_0_4_vit_l_14_linear.pth and its kin.
    Architecture(layers=("",), num_relus=0),
    # christophschuhmann/improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE.pth: 1 to 10.
    Architecture(layers=_numbered(0, 2, 4, 6, 7), num_relus=0),
)


class _HeadSignal:
    """A column of what a head says of each picture's embedding, null where there is none."""

    name: str
    schema: pa.Schema
    architectures: Sequence[Architecture]

    def __init__(self, root: str, options: Options) -> None:
        self._corpus = EmbeddedCorpus(root, options)
        option = f"{self.name}_head"
        url = options.get(option)
        flag = f"--options.{option.replace('_', '-')}"
        if url is None:
            raise ConfigError(
                f"signals {self.name!r}: no weights given; expected {flag} PATH, a state dict as "
                "LAION publishes it (.pth or .safetensors)"
            )
        self._head = read_head(url, self.architectures)
        if self._head.dim != self._corpus.manifest.dim:
            raise ConfigError(
                f"{flag} {url!r}: takes embeddings of {self._head.dim} numbers, those by "
                f"{self._corpus.encoder!r} have {self._corpus.manifest.dim}; name the encoder that "
                "it was trained for with --encoder"
            )

    def identity(self) -> dict[str, Any]:
        (column,) = self.schema.names
        models = {**self._corpus.models, self._head.name: self._head.sha256}
        return {"version": 1, "models": {column: models}, **self._corpus.identity()}

    def __call__(self, shard: Shard) -> pa.Table:
        (column,) = self.schema.names
        scores = self._head(self._corpus.rows(shard, "image"))
        return self._corpus.columns(shard, {column: pa.array(scores, pa.float32())})


class ClipSafetySignal(_HeadSignal):
    """`punsafe`, LAION-5B's column of that name: there 0.5 flags about 3% of the pictures."""

    name = "clip_safety"
    schema = pa.schema([("punsafe", pa.float32())])
    architectures = CLIP_SAFETY


class AestheticSignal(_HeadSignal):
    """The mean rating that people would give, from 1 to 10: LAION-Aesthetics V2 starts at 4.5."""

    name = "aesthetic"
    schema = pa.schema([("aesthetic_score", pa.float32())])
    architectures = AESTHETIC


@dataclass(frozen=True)
class Head:
    name: str
    sha256: str
    architecture: Architecture
    state: State

    @cached_property
    def dim(self) -> int:
        return int(self.state[f"{self.architecture.layers[0]}weight"].shape[1])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings [n, d] -> scores [n]."""
        # All these heads were trained on unit vectors, and float16 rounds.
        x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        if self.architecture.norm:
            norm = self.architecture.norm
            x = (x - self.state[f"{norm}mean"]) / np.sqrt(self.state[f"{norm}variance"])
        for number, layer in enumerate(self.architecture.layers):
            x = x @ self.state[f"{layer}weight"].T + self.state[f"{layer}bias"]
            if number < self.architecture.num_relus:
                x = np.maximum(x, 0)
        scores: np.ndarray = x[:, 0]
        # logaddexp: exp alone overflows where a head is very sure.
        return np.exp(-np.logaddexp(0, -scores)) if self.architecture.sigmoid else scores


def read_head(url: str, architectures: Sequence[Architecture]) -> Head:
    """Raises InputError for a file that is not a state dict of one of the architectures."""
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise InputError(f"head {url}: no such file; expected a head's weights") from None
    state = _read_state(url, data)
    for architecture in architectures:
        if state.keys() == architecture.tensors and _fits(state, architecture):
            digest = hashlib.sha256(data).hexdigest()
            return Head(url.rsplit("/", 1)[-1], digest, architecture, state)
    known = " or ".join(", ".join(sorted(one.tensors)[:4]) + ", ..." for one in architectures)
    found = ", ".join(f"{name} {list(state[name].shape)}" for name in sorted(state)[:4])
    raise InputError(f"head {url}: has the tensors {found}, ...; expected {known}")


def _fits(state: State, architecture: Architecture) -> bool:
    """Each layer takes what the one before gives, and the last gives one number."""
    sizes = [state[f"{layer}weight"].shape for layer in architecture.layers]
    if any(len(size) != 2 for size in sizes):
        return False
    biases = [state[f"{layer}bias"].shape for layer in architecture.layers]
    gives = [size[0] for size in sizes]
    takes = [size[1] for size in sizes]
    return takes[1:] == gives[:-1] and gives[-1] == 1 and biases == [(number,) for number in gives]


def _read_state(url: str, data: bytes) -> State:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if url.endswith(".safetensors"):
            tensors = load(data)
        else:
            tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}
    except (
        *(RuntimeError, ValueError, EOFError, AttributeError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"head {url}: not a state dict that can be read ({reason}); expected tensors as "
            "torch.save or safetensors write them"
        ) from error
