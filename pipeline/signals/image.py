"""Scores that follow from the picture: its size as fetched, and how much there is to see on it.

Reads the shards' parquets for the original sizes and their tars for the pixels.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.corpus import SUCCESS, Shard, iter_samples, read_rows
from pipeline.score import Options
from pipeline.signals.pictures import decode

LONG_SIDE = 256
"""Pixels are looked at on a grey copy of at most this size, so that scores compare across sizes."""

BORDER_TOLERANCE = 8
"""Grey levels (of 256) that a border's pixels may differ from its corner: JPEG's own noise."""

Grey = NDArray[np.uint8]
"""[H, W], 0 black to 255 white."""


class ImageSignal:
    name = "image"
    schema = pa.schema(
        [
            ("original_short_side", pa.int32()),
            ("original_aspect", pa.float32()),
            ("num_bytes", pa.int32()),
            ("entropy", pa.float32()),
            ("sharpness", pa.float32()),
            ("share_of_border", pa.float32()),
        ]
    )

    def __init__(self, root: str, options: Options) -> None:
        del options  # there is nothing to choose
        self._root = root

    def identity(self) -> dict[str, Any]:
        return {"long_side": LONG_SIDE, "border_tolerance": BORDER_TOLERANCE, "version": 1}

    def __call__(self, shard: Shard) -> pa.Table:
        pixels = pa.Table.from_pylist(
            [
                {"key": sample.key, "num_bytes": len(sample.image), **_look_at(sample.image)}
                for sample in iter_samples(self._root, shard)
            ],
            pa.schema([("key", pa.string()), *list(self.schema)[2:]]),
        )
        # Row order is the tar's: both are in key order, and the keys say so.
        rows = read_rows(
            self._root, shard, ["key", "uid", "status", "original_width", "original_height"]
        )
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        assert rows["key"].equals(pixels["key"])  # each has the digest that it was written with
        columns = {"uid": rows["uid"], **_sizes(rows), **_columns(pixels.drop(["key"]))}
        return pa.table(columns).cast(pa.schema([("uid", pa.string()), *self.schema]))


def _sizes(rows: pa.Table) -> dict[str, pa.Array]:
    width, height = rows["original_width"], rows["original_height"]
    short, long = pc.min_element_wise(width, height), pc.max_element_wise(width, height)
    aspect = pc.divide(pc.cast(long, pa.float32()), pc.cast(short, pa.float32()))
    return {"original_short_side": short, "original_aspect": aspect}


def _columns(table: pa.Table) -> dict[str, pa.Array]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _look_at(image: bytes) -> dict[str, float | None]:
    grey = decode(image, "L", LONG_SIDE)
    if grey is None:
        return {"entropy": None, "sharpness": None, "share_of_border": None}
    grey.thumbnail((LONG_SIDE, LONG_SIDE))
    pixels = np.asarray(grey)
    return {
        "entropy": entropy(pixels),
        "sharpness": sharpness(pixels),
        "share_of_border": share_of_border(pixels),
    }


def entropy(grey: Grey) -> float:
    """Shannon entropy of the grey levels in bits: 0 for one flat colour, 8 at most."""
    counts = np.bincount(grey.ravel(), minlength=256)
    p = counts[counts > 0] / grey.size
    return float(np.sum(p * np.log2(1 / p)))


def sharpness(grey: Grey) -> float:
    """Variance of the Laplacian; low is blurred.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000).
    """
    if min(grey.shape) < 3:
        return 0.0
    g = grey.astype(np.float32)
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    return float(laplacian.var())


def share_of_border(grey: Grey) -> float:
    """The share of the picture outside the smallest box that holds all but its corner's colour."""
    differs = np.abs(grey.astype(np.int16) - int(grey[0, 0])) > BORDER_TOLERANCE
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not rows.size:
        return 1.0
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return float(1 - box / grey.size)
