"""The stored embeddings of an index's rows, by row number.

Reads   ROOT/embeddings/<encoder>/img_emb/ and text_emb/

Local arrays are memory-mapped, remote ones read by ranges: either way, what is asked for is all
that is read.
"""

import io
from collections.abc import Sequence

import numpy as np

from infra import storage
from retrieval.embeddings import Modality, Part, array_name, embeddings_url
from retrieval.indexing.manifest import IndexManifest
from retrieval.live.files import map_file


class StoredVectors:
    """One modality's vectors."""

    def __init__(self, folder: str, parts: Sequence[Part], modality: Modality, dim: int) -> None:
        """Raises FileNotFoundError where they are not there."""
        self.dim = dim
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        names = [array_name(modality, part.file_number) for part in parts]
        self._arrays = [map_array(storage.join(folder, name)) for name in names]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """[len(rows), d] float16, at these row numbers in any order."""
        found = np.empty((len(rows), self.dim), np.float16)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self._arrays[number][rows[here] - self._starts[number]]
        return found


def stored_vectors(root: str, manifest: IndexManifest, modality: Modality) -> StoredVectors | None:
    """None where the embeddings are not, or no longer, what the index was made of."""
    folder = embeddings_url(root, manifest.encoder)
    try:
        return StoredVectors(folder, manifest.parts, modality, manifest.dim)
    except FileNotFoundError:
        return None


def map_array(url: str) -> np.ndarray:
    """A .npy file, memory-mapped."""
    data = map_file(url)
    header = io.BytesIO(data.slice(0, min(len(data), 1024)))
    version = np.lib.format.read_magic(header)
    assert version == (1, 0), version
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return np.frombuffer(data, dtype, offset=header.tell()).reshape(shape)
