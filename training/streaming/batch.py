"""What a stream gives, and what it is made of."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step: b pictures of one shape."""

    uids: list[str]
    captions: list[str]
    pixels: Tensor  # uint8 [b, 3, H, W], in channels-last memory


@dataclass(frozen=True)
class StreamSettings:
    """What a stream is made of; it can be sent to other processes."""

    root: str
    selection: str | None = None
    mix: tuple[str, ...] = ()
    mix_shares: tuple[float, ...] = ()
    mix_selections: tuple[str, ...] = ()
    """Of each of `mix`; "": all of it."""
    born: tuple[str, ...] = ()
    """The digests of the corpora when the run began; none: it begins now."""
    run: str | None = None
    """Where it is noted when samples are taken down; none: nowhere."""
    held_out: float = 0.0
    needs_captions: bool = False
    image_size: int = 32
    max_aspect_ratio: float = 1.0
    side_multiple: int = 16
    horizontal_flip: bool = False
    crop: Literal["centre", "random"] = "centre"
    batch_size: int = 128
    seed: int = 0
    shuffle_shards: int = 8
    shuffle_samples: int = 8192
    cache_size_mb: int = 1024
    decode_in: Literal["threads", "processes", "ray"] = "threads"
    num_decoders: int = 2
    num_readers: int = 16
    device: str = "cpu"
    on_device: bool = False
