"""Some samples of the corpus to look at while a run trains, always the same ones.

Reads   ROOT/manifest.json, a selection if one is named, and of the shards as many as it takes
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.corpus import SUCCESS, Shard, read_manifest, read_rows, read_selection
from retrieval.live.images import read_images
from training.config import Config
from training.data import decode
from training.held_out import is_held_out


@dataclass(frozen=True)
class Example:
    uid: str
    caption: str
    pixels: Tensor
    """uint8 [3, S, S]"""
    is_held_out: bool


def read_examples(config: Config, held_out: bool, limit: int) -> list[Example]:
    """Held-out samples, or ones that are trained on: those with the smallest uids of the first
    shard, and of the next until there are enough."""
    kept = None
    if config.selection is not None:
        selection = read_selection(config.root, config.selection)
        kept = set(selection.filter(selection["keep"])["uid"].to_pylist())
    found: list[Example] = []
    for shard in read_manifest(config.root).shards:
        captions = {
            uid: caption
            for uid, caption in _rows(config.root, shard)
            if is_held_out(uid, config.held_out) == held_out and (kept is None or uid in kept)
        }
        wanted = sorted(captions)[: limit - len(found)]
        images = read_images(config.root, {shard.name: [(uid, None) for uid in wanted]})
        for uid in (uid for uid in wanted if uid in images):
            pixels = to_tensor(decode(images[uid], config.image_size))
            found.append(Example(uid, captions[uid], pixels, held_out))
        if len(found) == limit:
            break
    return found


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [S, S, 3] -> [3, S, S]"""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _rows(root: str, shard: Shard) -> Sequence[tuple[str, str]]:
    """(uid, caption) of a shard's samples."""
    rows = read_rows(root, shard, ["uid", "caption", "status"])
    rows = rows.filter(pc.equal(rows["status"], SUCCESS))
    return list(zip(rows["uid"].to_pylist(), rows["caption"].to_pylist(), strict=True))
