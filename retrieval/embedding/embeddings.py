"""Embeddings on disk: clip-retrieval's layout, with a manifest that says what they are of.

    ROOT/embeddings/<encoder>/img_emb/img_emb_{i}.npy        [n, d] float16, unit rows
                              text_emb/text_emb_{i}.npy      [n, d] float16, unit rows
                              metadata/metadata_{i}.parquet  image_path (the key), uid, caption, url
                              parts/part_{i}.json            what was counted; a shard's last file
                              manifest.json                  written last

`i` is the shard's number; the rows of its three files belong together. A part is of one state of
its shard: `embed` keeps it as long as the shard's digests are the same, however the corpus grows.
"""

import hashlib
import io
import re
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.config import digest_of
from infra.errors import ConflictError, DamagedError, InputError
from infra.records import read_record
from pipeline.corpus import Manifest, Shard

if TYPE_CHECKING:
    import numpy as np

EMBEDDED_ENCODER = "Carrara-S/emoji_clipart"
"""Ships with the package: small, for the demo and the tests."""
DEFAULT_ENCODER = "ViT-B-32/laion2b_s34b_b79k"

SCHEMA_VERSION = 1

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
_PREFIXES: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
_PART = re.compile(r"parts/part_(\d+)(?:_\d+)*\.json")


class Part(BaseModel):
    """The embeddings of one shard."""

    model_config = ConfigDict(frozen=True)

    shard: str
    file_number: str
    """`i` in the file names, with zeros before it so that names sort as numbers do."""
    num_rows: int
    num_undecodable: int
    """Samples of the shard left out because their picture can't be decoded."""
    dim: int
    shard_digest: str = ""
    """sha256 of the shard's tar that was embedded."""
    rows_digest: str = ""
    """sha256 of its parquet, of which the metadata are."""
    precision: str = ""
    """Of the arithmetic that it was embedded with."""
    files: dict[str, str]
    """sha256 by path within the folder."""

    @property
    def record_name(self) -> str:
        """Of this record, within the folder."""
        return f"parts/part_{self.file_number}.json"

    def is_of(self, shard: Shard) -> bool:
        """Of the very bytes that the shard has now?"""
        return (self.shard_digest, self.rows_digest) == (shard.sha256, shard.rows_sha256)


class EmbeddingsManifest(BaseModel):
    """What a folder of embeddings holds and what it was made from."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    encoder: str
    weights_digest: str
    precision: str
    dim: int
    corpus_digest: str
    counts: dict[str, int]
    parts: list[Part]
    files: dict[str, str]
    """sha256 of every array and table, by path within the folder."""

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name the embeddings: the same arrays, the same digest."""
        return digest_of(self.files)

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)


class _Named(BaseModel):
    """What the manifests of embeddings and of indices have in common."""

    encoder: str


def encoder_slug(encoder: str) -> str:
    """The encoder's name as the name of a folder."""
    return encoder.replace("/", "__")


def embeddings_url(root: str, encoder: str) -> str:
    return storage.join(root, "embeddings", encoder_slug(encoder))


def index_url(root: str, encoder: str) -> str:
    return storage.join(root, "index", encoder_slug(encoder))


def array_name(modality: Modality, file_number: str) -> str:
    prefix = _PREFIXES[modality]
    return f"{prefix}/{prefix}_{file_number}.npy"


def metadata_name(file_number: str) -> str:
    return f"metadata/metadata_{file_number}.parquet"


def part_name(shard_name: str, width: int) -> str:
    return f"parts/part_{file_number(shard_name, width)}.json"


def file_number(shard_name: str, width: int) -> str:
    """The shard's number in the names of its files, so that names sort as numbers do.

    A number with more digits than the names have goes on after the last that fitted: 8, 9, 9_10,
    ..., 9_99, 9_99_100. What was there keeps its name when a corpus grows.
    """
    number = str(int(shard_name))
    before = ["9" * digits for digits in range(width, len(number))]
    return "_".join([*before, number.zfill(width)])


def number_width(corpus: Manifest, there: Collection[str] = ()) -> int:
    """Digits of the numbers in names: of the files that are there, else of the largest shard's."""
    parts = (_PART.fullmatch(name) for name in there)
    if of_parts := next(filter(None, parts), None):
        return len(of_parts[1])
    return max((len(str(int(shard.name))) for shard in corpus.shards), default=1)


def read_parts(folder: str) -> dict[str, Part]:
    """By shard; those of which every file is there."""
    there = storage.list_files(folder)
    names = sorted(name for name in there if _PART.fullmatch(name))
    parts = [read_record(storage.join(folder, name), Part) for name in names]
    return {part.shard: part for part in parts if there >= part.files.keys()}


def read_embeddings_manifest(root: str, encoder: str, corpus: Manifest) -> EmbeddingsManifest:
    """Raises InputError where there are none, ConflictError where they are of another corpus."""
    url = storage.join(embeddings_url(root, encoder), "manifest.json")
    command = f"`carrara embed {root} --encoder {encoder}`"
    if not storage.exists(url):
        raise InputError(f"{root}: no embeddings by {encoder!r}; make them with {command}")
    manifest = read_record(url, EmbeddingsManifest)
    if manifest.corpus_digest != corpus.digest:
        raise ConflictError(
            f"{url}: embeddings of another state of the corpus (digest {manifest.corpus_digest}, "
            f"now {corpus.digest}); make them anew with {command} --overwrite"
        )
    return manifest


def read_array(folder: str, part: Part, modality: Modality) -> "np.ndarray":
    """[n, d] float16; raises DamagedError if it is not what its manifest says."""
    import numpy as np

    data = read_file(folder, part, array_name(modality, part.file_number))
    rows: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    assert rows.shape == (part.num_rows, part.dim)
    return rows


def read_metadata(folder: str, part: Part, columns: list[str] | None = None) -> pa.Table:
    """One row for each row of the part's arrays."""
    name = metadata_name(part.file_number)
    data = read_file(folder, part, name)
    return storage.parse_table(data, storage.join(folder, name), columns)


def read_file(folder: str, part: Part, name: str) -> bytes:
    """Raises DamagedError for a file that is not what its part's record says."""
    url = storage.join(folder, name)
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        reason = "missing"
    else:
        if hashlib.sha256(data).hexdigest() == part.files[name]:
            return data
        reason = "damaged"
    raise DamagedError(
        f"{url}: {reason}; remove it and run `carrara embed` again, with the settings it had"
    )


def array_bytes(rows: "np.ndarray") -> bytes:
    """[n, d] as float16, in numpy's format."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, rows.astype(np.float16), allow_pickle=False)
    return buffer.getvalue()


def metadata_bytes(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def choose_encoder(root: str, folder: Literal["embeddings", "index"], encoder: str | None) -> str:
    """The encoder asked for, else the only one that ROOT/folder has anything of.

    Raises InputError where there is none, several, or not the one asked for.
    """
    have = list_encoders(root, folder)
    if encoder in have:
        return encoder
    if encoder is not None or not have:
        stage = {"embeddings": "embed", "index": "index"}[folder]
        asked = f" by {encoder!r} (there are: {', '.join(have)})" if have else ""
        option = f" --encoder {encoder}" if encoder is not None else ""
        raise InputError(f"{root}: no {folder}{asked}; run `carrara {stage} {root}{option}` first")
    if len(have) > 1:
        raise InputError(f"{root}: several encoders: {', '.join(have)}; say which with --encoder")
    return have[0]


def list_encoders(root: str, folder: Literal["embeddings", "index"]) -> list[str]:
    """Names of the encoders that ROOT/folder has finished work of."""
    manifest_name = {"embeddings": "manifest.json", "index": "index.json"}[folder]
    base = storage.join(root, folder)
    urls = [storage.join(base, slug, manifest_name) for slug in storage.list_names(base)]
    return [read_record(url, _Named).encoder for url in urls if storage.exists(url)]
