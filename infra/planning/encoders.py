"""What a CLIP model of two transformers costs, by its configuration.

Reads   open_clip's configurations, or open_clip_config.json in a folder; loads no library
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EncoderCost:
    dim: int
    """Of an embedding."""
    image_flops: float
    text_flops_per_token: float

    def flops(self, num_text_tokens: int) -> float:
        """Of a picture and its caption; a multiplication and an addition are two."""
        return self.image_flops + num_text_tokens * self.text_flops_per_token


def encoder_cost(name: str) -> EncoderCost | None:
    """Of MODEL, MODEL/TAG or a folder; None where it isn't two transformers of open_clip's own."""
    config = _configuration(name)
    if config is None:
        return None
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "width" not in text:
        return None
    num_patches = (vision["image_size"] // vision["patch_size"]) ** 2
    image = transformer_flops(vision["layers"], vision["width"], num_patches + 1)
    image += 2 * 3 * vision["patch_size"] ** 2 * vision["width"] * num_patches
    length = text["context_length"]
    words = transformer_flops(text["layers"], text["width"], length)
    return EncoderCost(config["embed_dim"], image, words / length)


def transformer_flops(num_layers: int, width: int, num_tokens: int) -> float:
    """Forward: 24 n w^2 a layer for its projections and MLP, 4 n^2 w for attention (Kaplan et al.
    2020, "Scaling laws", table 1, with attention to all tokens)."""
    return float(num_layers * (24 * num_tokens * width**2 + 4 * num_tokens**2 * width))


def _configuration(name: str) -> dict[str, Any] | None:
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    known = Path(spec.origin).parent / "model_configs"
    for place in (Path(name) / "open_clip_config.json", known / f"{name.split('/')[0]}.json"):
        if place.is_file():
            config: dict[str, Any] = json.loads(place.read_text())
            inner: dict[str, Any] = config.get("model_cfg", config)
            return inner
    return None
