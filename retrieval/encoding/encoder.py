"""An open_clip model as an encoder: pictures and captions to unit vectors of one space.

Reads   the model's configuration and weights: shipped with this package, in a local folder, in a
        file, or from the Hugging Face hub (cached there as open_clip caches it)

A name that can't be had is an error; no other encoder ever takes its place.

Shapes: n texts or pictures, d the width of the shared space, L tokens, w the text tower's width,
H and W the height and width that the image tower takes.
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

from infra.errors import ConfigError, InputError
from retrieval.encoding.preprocess import Preprocess
from retrieval.encoding.text_padding import encode_tokens, lengths_needed
from retrieval.encoding.weights import find_weights, sha256

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of the arithmetic. "auto": bf16 where the hardware has it, see `choose_precision`."""

TEXT_BATCH = IMAGE_BATCH = 64
"""Texts are encoded in order of length: small batches are of nearly one length each."""

CPU_HAS_BF16 = ("avx512_bf16", "amx_bf16", "sve_bf16", "sme", "bf16")
"""torch's names for instructions that multiply bfloat16: AVX-512, AMX, and ARM's."""


def load_encoder(name: str, device: str = "cpu", precision: Precision = "fp32") -> "Encoder":
    """The encoder of that name, ready to use; `device` "auto" takes a GPU where one is.

    Names: `Carrara-S/emoji_clipart` (shipped), `MODEL/TAG` as open_clip lists them,
    `MODEL/path/to/weights`, a folder with open_clip_config.json, `hf-hub:org/name`.
    Raises InputError if there is no such encoder or its weights can't be had, ConfigError for a
    device that this machine lacks.
    """
    source = find_weights(name)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    if precision == "auto":
        precision = choose_precision(device)
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
    # The order of the bytes of a decoded picture, and the one that convolutions are quickest with.
    model.visual.to(memory_format=torch.channels_last)
    return Encoder(name, model.eval(), tokenizer, source.path, device, precision)


def choose_precision(device: str) -> Precision:
    """bf16 where the hardware multiplies it at full speed, fp16 on the GPUs before, else fp32.

    Emulated, bf16 is slower than fp32. Weights are rounded once, on loading: what autocast does
    with every batch took longer than fp32 itself (docs/embed.md has the figures).
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if kind == "cpu":
        has = torch.cpu.get_capabilities()
        return "bf16" if any(has.get(name) for name in CPU_HAS_BF16) else "fp32"
    return "fp32"


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    # AssertionError is what a torch without CUDA raises.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--device {device!r}: this machine can't compute there ({reason}); expected cpu, auto "
            "or a device that it has, such as cuda or cuda:1"
        ) from error


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
        self.device = device
        self.precision = precision
        """What was resolved: never "auto"."""
        self._dtype = open_clip.get_input_dtype(precision)
        # The text tower is the model itself in open_clip's plain CLIP, else a part of it.
        self._text_tower = getattr(model, "text", model)
        self.preprocess = Preprocess.of_model(model)
        """A picture -> [H, W, 3] uint8, as the model was trained to see it."""
        # What the channels of [n, 3, H, W] in [0, 255] are shifted and divided by.
        mean, std = torch.tensor(self.preprocess.mean), torch.tensor(self.preprocess.std)
        self._shift = (mean * 255).view(3, 1, 1).to(device)
        self._scale = (std * 255).view(3, 1, 1).to(device)

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
            self.encode_pixels(np.stack([self.preprocess.of_picture(image) for image in batch]))
            for batch in _batches(images, IMAGE_BATCH)
        ]
        return np.concatenate(batches) if batches else self._no_rows()

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Preprocessed pictures [n, H, W, 3] uint8 -> [n, d] float32, unit rows."""
        return self.unit_rows(torch.from_numpy(pixels)).cpu().numpy()

    @torch.inference_mode()
    def unit_rows(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same on the encoder's device, where a GPU may still be at work on it."""
        # Bytes travel, a quarter of the numbers; from pinned memory they travel while work goes on.
        moved = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        normalised = moved.sub_(self._shift).div_(self._scale).to(self._dtype)
        return _unit_rows(self._model.encode_image(normalised))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32, unit rows; texts beyond `context_length` tokens are cut there.

        They are encoded in order of length, each batch only as far as its longest.
        """
        if not texts:
            return self._no_rows()
        tokens = self._tokenizer(list(texts))
        lengths = lengths_needed(self._text_tower, tokens)
        order = lengths.argsort(stable=True)
        batches = []
        for batch in torch.split(order, TEXT_BATCH):
            shortened = tokens[batch, : int(lengths[batch].max())].to(self.device)
            features = encode_tokens(self._model, self._text_tower, shortened)
            batches.append(_unit_rows(features).cpu())
        rows: np.ndarray = torch.cat(batches)[order.argsort()].numpy()
        return rows

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
        return self._tokenizer(list(texts)).to(self.device)

    def _no_rows(self) -> np.ndarray:
        return np.zeros((0, self.dim), np.float32)


def _unit_rows(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
