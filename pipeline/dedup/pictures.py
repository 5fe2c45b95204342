"""Pictures as dedup knows them: digests and hashes, packed for arithmetic over all of them at once.

n pictures take 97 bytes each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.picture_hash import MIN_QUALITY, NUM_BITS

Digests = NDArray[np.uint64]
"""[n, 2]: the first 128 bits of a sha256, or a uid, as big numbers; zero where there is none."""
Hashes = NDArray[np.uint8]
"""[n, 32]"""


@dataclass(frozen=True)
class Pictures:
    sha256: Digests
    """Of the bytes as fetched."""
    pixel_sha256: Digests
    upright: Hashes
    mirrored: Hashes
    is_hashed: NDArray[np.bool_]
    """[n]: whether there is enough to see for the hashes to tell pictures apart."""

    def __len__(self) -> int:
        return len(self.is_hashed)

    @classmethod
    def of_table(cls, table: pa.Table) -> "Pictures":
        """Of the columns that the signal `hashes` writes, and the shards' `sha256`."""
        quality = pc.fill_null(table["picture_hash_quality"], 0).to_numpy()
        return cls(
            sha256=digests(table["sha256"]),
            pixel_sha256=digests(table["pixel_sha256"]),
            upright=_hashes(table["picture_hash"]),
            mirrored=_hashes(table["picture_hash_mirrored"]),
            is_hashed=quality >= MIN_QUALITY,
        )

    @classmethod
    def concatenated(cls, parts: Sequence["Pictures"]) -> "Pictures":
        return cls(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(cls)
            }
        )


def digests(column: pa.ChunkedArray) -> Digests:
    """Of hex digits; the first 32 of them count."""
    numbers = np.frombuffer(_from_hex(column, 32), ">u8").astype(np.uint64)
    return numbers.reshape(-1, 2)


def to_hex(numbers: Digests) -> list[str]:
    """32 hex digits each."""
    text = numbers.astype(">u8").tobytes().hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


def _hashes(column: pa.ChunkedArray) -> Hashes:
    return np.frombuffer(_from_hex(column, NUM_BITS // 4), np.uint8).reshape(-1, NUM_BITS // 8)


def _from_hex(column: pa.ChunkedArray, num_digits: int) -> bytes:
    text = pc.utf8_slice_codeunits(pc.fill_null(column, "0" * num_digits), 0, num_digits)
    return bytes.fromhex("".join(text.to_pylist()))
