"""Pictures that a user gives as examples of what is wanted, as embeddings of the corpus's encoder.

Reads   a folder of pictures; an .npy file [m, d] of their embeddings; or a folder of embeddings as
        `carrara embed` leaves it (ROOT/embeddings/<encoder>), on any fsspec URL
"""

import hashlib
import io
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from infra import storage
from infra.errors import InputError
from infra.progress import track
from infra.records import read_record
from retrieval.captions.corpus import EmbeddedCorpus
from retrieval.embedding.embeddings import EmbeddingsManifest, read_array
from retrieval.encoding.pictures import decode_picture

BATCH_SIZE = 64
"""Pictures encoded at once."""
MANIFEST = "manifest.json"


class Examples:
    """What an option names; raises InputError where nothing is there."""

    def __init__(self, corpus: EmbeddedCorpus, option: str, place: str) -> None:
        self._corpus = corpus
        self._option = option
        self._place = storage.absolute(place)
        self._files = list(self._list())

    @cached_property
    def digest(self) -> str:
        """Of the files' bytes, in their order."""
        digest = hashlib.sha256()
        for url in self._files:
            try:
                digest.update(bytes.fromhex(storage.sha256(url)))
            except FileNotFoundError:
                raise InputError(f"{self._option} {url}: no such file") from None
        return digest.hexdigest()

    def embed(self) -> np.ndarray:
        """[m, d] float32, unit rows."""
        if self._place.endswith(".npy"):
            return self._read_array()
        if self._files[0].endswith(MANIFEST):
            return self._read_embeddings(self._files[0])
        encoder = self._corpus.load_encoder("auto")
        batches = []
        with track(f"score: {self._option}", len(self._files), "pictures") as bar:
            for start in range(0, len(self._files), BATCH_SIZE):
                urls = self._files[start : start + BATCH_SIZE]
                batches.append(encoder.encode_images([self._picture(url) for url in urls]))
                bar.advance(len(urls))
        return np.concatenate(batches)

    def _list(self) -> Iterator[str]:
        if self._place.endswith(".npy"):
            yield self._place
            return
        names = sorted(storage.list_files(self._place))
        if not names:
            raise InputError(
                f"{self._option} {self._place}: nothing is there; expected a folder of pictures, "
                "an .npy file of embeddings, or a folder of embeddings"
            )
        # The record of embeddings names the digest of every array: it stands for them all.
        names = [MANIFEST] if MANIFEST in names else names
        yield from (storage.join(self._place, name) for name in names)

    def _read_array(self) -> np.ndarray:
        dim = self._corpus.manifest.dim
        try:
            rows = np.load(io.BytesIO(storage.read_bytes(self._place)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{self._option} {self._place}: not an .npy file ({error})") from None
        if rows.ndim != 2 or rows.shape[1] != dim or not len(rows):
            raise InputError(
                f"{self._option} {self._place}: shape {rows.shape}; expected [m, {dim}], "
                f"embeddings by {self._corpus.encoder!r}"
            )
        return self._unit(rows)

    def _read_embeddings(self, url: str) -> np.ndarray:
        manifest, own = read_record(url, EmbeddingsManifest), self._corpus.manifest
        if (manifest.encoder, manifest.weights_digest) != (own.encoder, own.weights_digest):
            raise InputError(
                f"{self._option} {self._place}: embeddings by {manifest.encoder!r}; expected some "
                f"by {own.encoder!r}, with the weights that the corpus was embedded with"
            )
        if not manifest.num_rows:
            raise InputError(f"{self._option} {self._place}: the embeddings have no rows")
        arrays = [read_array(self._place, part, "image") for part in manifest.parts]
        return self._unit(np.concatenate(arrays))

    def _unit(self, rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all()):
            raise InputError(
                f"{self._option} {self._place}: some rows are no embeddings (zero or NaN)"
            )
        return np.ascontiguousarray(rows / lengths)

    def _picture(self, url: str) -> Any:
        try:
            return decode_picture(storage.read_bytes(url))
        except InputError as error:
            raise InputError(
                f"{self._option} {url}: {error}; nothing else may lie in the folder"
            ) from None
