"""Digests of the pixels and a perceptual hash: what `dedup` finds copies by.

Reads the shards' tars. The sha256 of the bytes as fetched is in the shards' parquets already.
"""

import hashlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus import Shard, iter_samples
from pipeline.picture_hash import Pixels, dihedral_hashes
from pipeline.pixels.picture_header import DECODER_ERRORS
from pipeline.pixels.stored_picture import open_picture, upright_rgb
from pipeline.score import Options


class HashesSignal:
    name = "hashes"
    schema = pa.schema(
        [
            ("pixel_sha256", pa.string()),
            ("picture_hash", pa.string()),
            ("picture_hash_mirrored", pa.string()),
            ("picture_hash_quality", pa.int32()),
        ]
    )

    def __init__(self, root: str, options: Options) -> None:
        del options  # there is nothing to choose
        self._root = root

    def identity(self) -> dict[str, Any]:
        return {"picture_hash": "PDQ", "version": 1}

    def __call__(self, shard: Shard) -> pa.Table:
        rows = [
            {"uid": sample.uid, **hash_picture(sample.image)}
            for sample in iter_samples(self._root, shard)
        ]
        return pa.Table.from_pylist(rows, pa.schema([("uid", pa.string()), *self.schema]))


def hash_picture(image: bytes) -> dict[str, str | int | None]:
    """The schema's columns of one picture, nulls where its bytes can't be decoded."""
    pixels = decode_pixels(image)
    return dict.fromkeys(HashesSignal.schema.names) if pixels is None else hash_pixels(pixels)


def hash_pixels(pixels: Pixels) -> dict[str, str | int | None]:
    hashes = dihedral_hashes(pixels, ("upright", "mirrored"))
    return {
        "pixel_sha256": _pixel_sha256(pixels),
        "picture_hash": hashes["upright"].hex,
        "picture_hash_mirrored": hashes["mirrored"].hex,
        "picture_hash_quality": hashes["upright"].quality,
    }


def decode_pixels(image: bytes) -> Pixels | None:
    """Upright RGB, transparent parts on white, as `download` stores it; None if undecodable."""
    try:
        with open_picture(image) as picture:
            return np.asarray(upright_rgb(picture))
    except DECODER_ERRORS:
        return None


def _pixel_sha256(pixels: Pixels) -> str:
    """Of height and width too: the same bytes in another shape are another picture."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(struct.pack("<2I", height, width))
    digest.update(pixels.tobytes())
    return digest.hexdigest()
