"""An open_clip model as an encoder: pictures and captions to unit vectors of one space.

Reads   the model's configuration and weights: shipped with this package, in a local folder, in a
        file, or from the Hugging Face hub (cached there as open_clip caches it)

A name that can't be had is an error; no other encoder ever takes its place.

Shapes: n texts or pictures, d the width of the shared space, L tokens, w the text tower's width.
"""

import pickle
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError

from infra.errors import InputError
from retrieval.weights import find_weights, sha256

Precision = Literal["fp32", "bf16", "fp16"]

TEXT_BATCH = 256
IMAGE_BATCH = 64


def load_encoder(name: str, device: str = "cpu", precision: Precision = "fp32") -> "Encoder":
    """The encoder of that name, ready to use; `device` "auto" takes a GPU where one is.

    Names: `Carrara-S/emoji_clipart` (shipped), `MODEL/TAG` as open_clip lists them,
    `MODEL/path/to/weights`, a folder with open_clip_config.json, `hf-hub:org/name`.
    Raises InputError if there is no such encoder or its weights can't be had.
    """
    source = find_weights(name)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = open_clip.create_model(
            source.model,
            pretrained=None if source.in_folder else str(source.path),
            precision=precision,
            device=device,
            force_quick_gelu=source.quick_gelu,
            force_preprocess_cfg=source.preprocessing,
            weights_only=True,
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(source.model)
    except (
        *(RuntimeError, OSError, ValueError, LookupError, EOFError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"encoder {name!r}: {source.path} can't be used as weights of "
            f"{source.model.removeprefix('local-dir:')} ({reason})"
        ) from error
    return Encoder(name, model.eval(), tokenizer, source.path, device, precision)


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
        return sha256(self._weights)

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


def _unit_rows(features: torch.Tensor) -> np.ndarray:
    rows: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return rows


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
