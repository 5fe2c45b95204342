"""The embeddings of a corpus, shard by shard, and the table that a signal makes of them.

Reads   ROOT/manifest.json, ROOT/embeddings/<encoder>/
"""

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import ConfigError
from pipeline.corpus import SUCCESS, Shard, read_manifest, read_rows
from pipeline.score import Options
from retrieval.embedding.embeddings import (
    EmbeddingsManifest,
    Modality,
    Part,
    choose_encoder,
    embeddings_url,
    read_array,
    read_embeddings_manifest,
    read_metadata,
)

if TYPE_CHECKING:
    from retrieval.encoding.encoder import Encoder, Precision


class EmbeddedCorpus:
    """The corpus's embeddings by one encoder."""

    def __init__(self, root: str, options: Options) -> None:
        self.root = root
        corpus = read_manifest(root)
        self.encoder = choose_encoder(root, "embeddings", options.get("encoder"))
        self.manifest: EmbeddingsManifest = read_embeddings_manifest(root, self.encoder, corpus)
        self._folder = embeddings_url(root, self.encoder)
        self._parts: dict[str, Part] = {part.shard: part for part in self.manifest.parts}

    def identity(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "embeddings": self.manifest.digest}

    @property
    def models(self) -> dict[str, str]:
        """The encoder and the sha256 of its weights."""
        return {self.encoder: self.manifest.weights_digest}

    def load_encoder(self, device: str) -> "Encoder":
        """The encoder, as precise as it was for the corpus: what it gives compares best."""
        from retrieval.encoding.encoder import load_encoder

        return load_encoder(self.encoder, device, cast("Precision", self.manifest.precision))

    def rows(self, shard: Shard, modality: Modality) -> np.ndarray:
        """[n, d] float32, unit up to float16."""
        return read_array(self._folder, self._parts[shard.name], modality).astype(np.float32)

    def uids(self, shard: Shard) -> list[str]:
        """Whose rows they are, in their order."""
        found: list[str] = self._uids(shard).to_pylist()
        return found

    def _uids(self, shard: Shard) -> pa.ChunkedArray:
        return read_metadata(self._folder, self._parts[shard.name], ["uid"])["uid"]

    def columns(self, shard: Shard, values: dict[str, pa.Array]) -> pa.Table:
        """One row a sample of the shard, null where there is no embedding to score."""
        embedded = self._uids(shard)
        rows = read_rows(self.root, shard, ["uid", "status"])
        uids = rows.filter(pc.equal(rows["status"], SUCCESS))["uid"]
        places = pc.index_in(uids, value_set=embedded.combine_chunks())
        taken = {name: array.take(places) for name, array in values.items()}
        return pa.table({"uid": uids.combine_chunks(), **taken})


def whole_number(options: Options, name: str, default: int) -> int:
    """Raises ConfigError for anything but a whole number from 1 on."""
    text = options.get(name)
    if text is None:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"options.{name} {text!r}: expected a whole number from 1 on")
    return int(text)
