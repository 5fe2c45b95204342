"""An open_clip model as an encoder: pictures and captions to unit vectors of one space.

Reads   the model's configuration and weights: shipped with this package, in a local folder, in a
        file, or from the Hugging Face hub (cached there as open_clip caches it)

A name that can't be had is an error; no other encoder ever takes its place.

Shapes: n texts or pictures, d the width of the shared space, L tokens, w the text tower's width.
"""

import difflib
import hashlib
import importlib.util
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image
from safetensors import SafetensorError

from infra.errors import InputError
from retrieval.embeddings import EMBEDDED_ENCODER

Precision = Literal["fp32", "bf16", "fp16"]

EMBEDDED_FOLDERS = {EMBEDDED_ENCODER: Path(__file__).parent / "models" / "Carrara-S"}
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""On the hub and in folders, the safe format first; the second is read as tensors only."""
TEXT_BATCH = 256
IMAGE_BATCH = 64
PROBE_TIMEOUT_S = 5.0
"""The hub's client tries for 46 s where there is no network; so much patience is for downloads."""


def load_encoder(name: str, device: str = "cpu", precision: Precision = "fp32") -> "Encoder":
    """The encoder of that name, ready to use; `device` "auto" takes a GPU where one is.

    Names: `Carrara-S/emoji_clipart` (shipped), `MODEL/TAG` as open_clip lists them,
    `MODEL/path/to/weights`, a folder with open_clip_config.json, `hf-hub:org/name`.
    Raises InputError if there is no such encoder or its weights can't be had.
    """
    source = _find(name)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = open_clip.create_model(
            source.model,
            pretrained=None if source.in_folder else str(source.weights),
            precision=precision,
            device=device,
            force_quick_gelu=source.quick_gelu,
            force_preprocess_cfg=source.preprocessing,
            weights_only=True,
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(source.model)
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"encoder {name!r}: {source.weights} can't be used as weights of "
            f"{source.model.removeprefix('local-dir:')} ({reason})"
        ) from error
    return Encoder(name, model.eval(), tokenizer, source.weights, device, precision)


def weights_digest(name: str) -> str:
    """sha256 of the weights that `name` stands for, hex, without loading the model."""
    return _sha256(_find(name).weights)


class Encoder:
    """Pictures and texts in, vectors out; see the module's legend for the shapes."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Callable[[list[str]], torch.Tensor],
        weights: Path,
        device: str,
        precision: Precision,
    ) -> None:
        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        self._weights = weights
        self._device = device
        self._dtype = open_clip.get_input_dtype(precision)
        # The text tower is the model itself in open_clip's plain CLIP, else a part of it.
        self._text_tower = getattr(model, "text", model)
        settings = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
        self.preprocess: Callable[[Image.Image], torch.Tensor] = (
            open_clip.transform.image_transform_v2(settings, is_train=False)
        )
        """A picture -> [3, H, W], as the model was trained to see it; safe to call from threads."""

    @cached_property
    def dim(self) -> int:
        return int(self.encode_texts(["a"]).shape[1])

    @cached_property
    def weights_digest(self) -> str:
        """sha256 of the weights file, hex."""
        return _sha256(self._weights)

    @property
    def context_length(self) -> int:
        return int(self._model.context_length)

    @property
    def token_width(self) -> int:
        return int(self._text_tower.token_embedding.embedding_dim)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, d] float32, unit rows."""
        batches = [
            self.encode_pixels(torch.stack([self.preprocess(image) for image in batch]))
            for batch in _batches(images, IMAGE_BATCH)
        ]
        return np.concatenate(batches) if batches else self._no_rows()

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """Preprocessed pictures [n, 3, H, W] -> [n, d] float32, unit rows."""
        pixels = pixels.to(self._device, self._dtype)
        return _unit_rows(self._model.encode_image(pixels))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32, unit rows; texts beyond `context_length` tokens are cut there."""
        batches = [
            _unit_rows(self._model.encode_text(self._tokenize(batch)))
            for batch in _batches(texts, TEXT_BATCH)
        ]
        return np.concatenate(batches) if batches else self._no_rows()

    @torch.no_grad()
    def token_embeddings(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The text tower's last states [n, L, w] float32 and which are tokens [n, L] bool.

        What is past the end-of-text token is padding. Raises InputError for a text tower that is
        not open_clip's own.
        """
        if not hasattr(self._text_tower, "ln_final"):
            raise InputError(
                f"encoder {self.name!r}: its text tower gives no token embeddings; choose one with "
                "open_clip's own text tower, such as 'ViT-B-32/laion2b_s34b_b79k'"
            )
        tokens = self._tokenize(texts)
        outputs = self._model.forward_intermediates(
            text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        (states,) = outputs["text_intermediates"]
        return states.float(), self._is_token(tokens)

    def _is_token(self, tokens: torch.Tensor) -> torch.Tensor:
        end = getattr(self._tokenizer, "eot_token_id", None)
        if end is None:
            is_token: torch.Tensor = tokens != self._text_tower.pad_id
            return is_token
        places = torch.arange(tokens.shape[1], device=tokens.device)
        ends: torch.Tensor = (tokens == end).int().argmax(dim=1, keepdim=True)
        return places <= ends

    def _tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        return self._tokenizer(list(texts)).to(self._device)

    def _no_rows(self) -> np.ndarray:
        return np.zeros((0, self.dim), np.float32)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unit_rows(features: torch.Tensor) -> np.ndarray:
    rows: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return rows


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# From a name to a configuration and a weights file


@dataclass(frozen=True)
class _Source:
    model: str
    """As open_clip takes it: the name of a configuration, or "local-dir:FOLDER"."""
    weights: Path
    in_folder: bool
    """The weights lie beside their configuration, where open_clip finds them."""
    quick_gelu: bool = False
    preprocessing: dict[str, Any] | None = None


def _find(name: str) -> _Source:
    if name in EMBEDDED_FOLDERS:
        return _in_folder(name, EMBEDDED_FOLDERS[name])
    if name.startswith(open_clip.factory.HF_HUB_PREFIX):
        return _on_hub(name)
    if (Path(name) / CONFIG_NAME).is_file():
        return _in_folder(name, Path(name))
    model, _, rest = name.partition("/")
    if model not in open_clip.list_models() or not rest:
        raise _unknown(name)
    if tag := open_clip.get_pretrained_cfg(model, rest):
        return _by_tag(name, model, tag)
    if Path(rest).is_file():
        return _Source(model, Path(rest), in_folder=False)
    raise _unknown(name)


def _in_folder(name: str, folder: Path) -> _Source:
    for weights in (folder / weights_name for weights_name in WEIGHTS_NAMES):
        if (folder / CONFIG_NAME).is_file() and weights.is_file():
            return _Source(f"local-dir:{folder}", weights, in_folder=True)
    raise InputError(
        f"encoder {name!r}: {folder} lacks {CONFIG_NAME} or {WEIGHTS_NAMES[0]}; both belong there"
    )


def _by_tag(name: str, model: str, tag: dict[str, Any]) -> _Source:
    text_settings = open_clip.get_model_config(model)["text_cfg"]
    if "hf_model_name" in text_settings and importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"encoder {name!r}: its text tower needs the package transformers; "
            "`pip install transformers`, or choose another encoder"
        )
    # The repository, and the file if the last part names one.
    repository, _, file_name = tag["hf_hub"].rpartition("/")
    names = (file_name,) if file_name else WEIGHTS_NAMES
    return _Source(
        model,
        _download(name, repository, names),
        in_folder=False,
        # open_clip only warns where weights were trained with the other activation.
        quick_gelu=bool(tag.get("quick_gelu")),
        preprocessing={key: value for key, value in tag.items() if key != "size"},
    )


def _on_hub(name: str) -> _Source:
    repository = name.removeprefix(open_clip.factory.HF_HUB_PREFIX)
    _download(name, repository, (CONFIG_NAME,))
    return _Source(name, _download(name, repository, WEIGHTS_NAMES), in_folder=True)


def _download(name: str, repository: str, file_names: Sequence[str]) -> Path:
    """The first of these files that the repository has, from the hub's cache or the hub."""
    for file_name in file_names:
        cached = try_to_load_from_cache(repository, file_name)
        if isinstance(cached, str):
            return Path(cached)
    try:
        _probe_hub()
        for file_name in file_names:
            try:
                return Path(hf_hub_download(repository, file_name))
            except RemoteEntryNotFoundError:
                continue
        reason = f"the repository has no {' or '.join(file_names)}"
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
        f"encoder {name!r}: {repository} can't be downloaded from {hub.ENDPOINT} ({reason}); "
        "connect this machine to it, or give the weights as a file (--encoder "
        "MODEL/path/to/weights) or as a folder that holds them beside their open_clip_config.json"
    )


def _probe_hub() -> None:
    """Raises OSError within seconds if the hub does not answer at all."""
    if hub.HF_HUB_OFFLINE:
        raise ConnectionError(f"HF_HUB_OFFLINE is {os.environ.get('HF_HUB_OFFLINE', '1')}")
    try:
        request = urllib.request.Request(hub.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # It answers; whether it has the file is the download's to say.
    except urllib.error.URLError as error:
        raise ConnectionError(str(error.reason)) from error


def _unknown(name: str) -> InputError:
    known = [*EMBEDDED_FOLDERS, *("/".join(pair) for pair in open_clip.list_pretrained())]
    model, _, rest = name.partition("/")
    same_model = [candidate for candidate in known if candidate.startswith(f"{model}/")]
    nearest = difflib.get_close_matches(name, same_model or known, n=3, cutoff=0.0)
    what = f"{rest!r} is no weights file and no weights of {model}" if same_model else "unknown"
    return InputError(
        f"encoder {name!r}: {what}; the nearest are {', '.join(nearest)}; "
        f"MODEL/path/to/weights, a folder with {CONFIG_NAME} and hf-hub:org/name work too"
    )
