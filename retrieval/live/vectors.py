"""The stored embeddings of an index's rows, by row number.

Reads   ROOT/embeddings/<encoder>/img_emb/ and text_emb/

Local arrays are memory-mapped and stay what they were. Of remote ones the rows asked for are read,
by ranges; where the array is another by now, as after a takedown, that is an error.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from infra import storage
from infra.errors import StorageError
from infra.records import read_record
from retrieval.embedding.embeddings import (
    MODALITIES,
    EmbeddingsManifest,
    Modality,
    Part,
    array_name,
    embeddings_url,
)
from retrieval.indexing.manifest import IndexManifest
from retrieval.live.files import map_file

HEADER_BYTES = 128
"""Of a .npy file, as numpy pads it."""
NEAR_ROWS = 32
"""Rows so near in a remote file are read at once: 32 kB cost less than another request."""
NUM_THREADS = 8


class StoredVectors:
    """One modality's vectors."""

    def __init__(self, folder: str, parts: Sequence[Part], modality: Modality, dim: int) -> None:
        """Raises FileNotFoundError where local ones are not there."""
        self.dim = dim
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        self.is_local = "://" not in folder
        """So that many rows can be looked at."""
        urls = [storage.join(folder, array_name(modality, part.file_number)) for part in parts]
        self._arrays: list[np.ndarray | _RemoteArray] = []
        for url, part in zip(urls, parts, strict=True):
            shape = (part.num_rows, part.dim)
            array = map_array(url) if self.is_local else _RemoteArray(url, shape)
            if array.shape != shape:  # replaced since its manifest was read
                raise FileNotFoundError(url)
            self._arrays.append(array)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """[len(rows), d] float16, at these row numbers in any order."""
        found = np.empty((len(rows), self.dim), np.float16)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self._arrays[number][rows[here] - self._starts[number]]
        return found


def stored_vectors(root: str, manifest: IndexManifest) -> dict[Modality, StoredVectors] | None:
    """None where the embeddings are not, or no longer, what the index was made of."""
    folder = embeddings_url(root, manifest.encoder)
    record = storage.join(folder, "manifest.json")
    try:
        files = read_record(record, EmbeddingsManifest).files
        if any(part.files.items() - files.items() for part in manifest.parts):
            return None
        return {
            modality: StoredVectors(folder, manifest.parts, modality, manifest.dim)
            for modality in MODALITIES
        }
    except FileNotFoundError:
        return None


def map_array(url: str) -> np.ndarray:
    """A .npy file, memory-mapped."""
    data = map_file(url)
    shape, dtype, start = _header(data.slice(0, min(len(data), HEADER_BYTES)).to_pybytes())
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@dataclass(frozen=True)
class _RemoteArray:
    url: str
    shape: tuple[int, int]

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """[len(places), d] float16. Raises StorageError where the array is another by now."""
        shape, dtype, start = _header(storage.read_range(self.url, 0, HEADER_BYTES))
        if shape != self.shape or dtype != np.float16:
            raise StorageError(
                f"{self.url}: an array of {shape}, the index was made of {self.shape}; it is being "
                "replaced: ask again once the index has followed"
            )
        wanted, inverse = np.unique(places, return_inverse=True)
        row_bytes = 2 * shape[1]

        def read(rows: np.ndarray) -> np.ndarray:
            first, end = (start + int(row) * row_bytes for row in (rows[0], rows[-1] + 1))
            data = storage.read_range(self.url, first, end)
            run = np.frombuffer(data, np.float16).reshape(-1, shape[1])
            asked: np.ndarray = run[rows - rows[0]]
            return asked

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found: np.ndarray = np.concatenate(list(pool.map(read, _runs(wanted))))
        in_order: np.ndarray = found[inverse]
        return in_order


def _runs(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Sorted rows in pieces, a wider gap between each two."""
    yield from np.split(rows, np.flatnonzero(np.diff(rows) > NEAR_ROWS) + 1)


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Shape, type and where the values begin, of a .npy file of version 1."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    assert version == (1, 0), version
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()
