"""Index embeddings for search: one faiss index of the pictures, one of the captions.

    carrara index ROOT --encoder ViT-B-32/laion2b_s34b_b79k

Reads   ROOT/embeddings/<encoder>/
Writes  ROOT/index/<encoder>/image.index  text.index           ids are rows of metadata/, in order
                              metadata/metadata_{i}.parquet
                              index.json                       kind, digests, recall; written last

An index answers nearly, not exactly. How nearly differs between queries by words and by picture,
so recall@10 against exact search is measured for both, and stored and told.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import InputError
from infra.progress import track
from infra.records import read_record
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline.corpus import read_manifest
from retrieval.embeddings import (
    MODALITIES,
    EmbeddingsManifest,
    Modality,
    Part,
    choose_encoder,
    embeddings_url,
    index_url,
    metadata_name,
    read_embeddings_manifest,
    read_file,
)

if TYPE_CHECKING:
    import faiss

SCHEMA_VERSION = 1
RECALL_AT = 10
MAX_FLAT, MAX_HNSW = 50_000, 10_000_000
"""Rows up to which the exact scan is quick enough, and the graph fits one machine's memory: 512
dimensions take 2.3 kB a row in HNSW32, 0.5 kB in SQ8 (github.com/facebookresearch/faiss/wiki,
"Guidelines to choose an index")."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    encoder: str | None = None
    """Whose embeddings; none: the only ones there are."""
    kind: str | None = None
    """A faiss factory string; none: Flat, HNSW32 or IVF,SQ8, by the number of rows."""
    num_queries: int = Field(default=500, ge=1)
    """Captions and pictures that recall is measured with."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace an index of other embeddings or of another kind."""


class IndexManifest(BaseModel):
    """What an index holds, what it was made from and what was measured."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    encoder: str
    weights_digest: str
    dim: int
    num_rows: int
    kind: str
    recall_at_10: dict[Modality, dict[str, float]]
    """By index, then by the kind of query."""
    num_queries: int
    corpus_digest: str
    embeddings_digest: str
    parts: list[Part]
    """In the order of the ids."""
    files: dict[str, str]
    """sha256 by path within the folder."""


def run(config: Config) -> Summary:
    """Raises InputError where there are no embeddings, ConfigError for a kind that can't be."""
    with Stopwatch() as watch:
        corpus = read_manifest(config.root)
        encoder = choose_encoder(config.root, "embeddings", config.encoder)
        embeddings = read_embeddings_manifest(config.root, encoder, corpus)
        if embeddings.num_rows == 0:
            raise InputError(f"{config.root}: the embeddings by {encoder!r} have no rows to index")
        kind = config.kind or kind_for(embeddings.num_rows)
        folder = index_url(config.root, encoder)
        from retrieval.knn import check_kind

        check_kind(kind, embeddings.num_rows, embeddings.dim)
        claim(folder, _stamp(embeddings, kind, config.num_queries), overwrite=config.overwrite)
        url = storage.join(folder, "index.json")
        manifest = read_record(url, IndexManifest) if storage.exists(url) else None
        if manifest is None or not storage.list_files(folder) >= manifest.files.keys():
            manifest = _build(config, embeddings, kind, folder)
            storage.sweep(folder)
            storage.publish_text(url, manifest.model_dump_json(indent=2) + "\n")
    return Summary(
        stage="index",
        num_in=embeddings.num_rows,
        num_out=manifest.num_rows,
        counts={f"{modality} vectors": manifest.num_rows for modality in MODALITIES},
        seconds=watch.seconds,
        outputs={"index": folder},
        details={
            "encoder": encoder,
            "kind": kind,
            "num_queries": manifest.num_queries,
            "recall_at_10": manifest.recall_at_10,
        },
        table=[
            {"index": f"{modality} ({kind})", "queries": name, "recall@10": round(value, 4)}
            for modality, recalls in manifest.recall_at_10.items()
            for name, value in recalls.items()
        ],
    )


def kind_for(num_rows: int) -> str:
    """A faiss factory string."""
    if num_rows <= MAX_FLAT:
        return "Flat"
    if num_rows <= MAX_HNSW:
        return "HNSW32"
    # 4 sqrt(n) to 16 sqrt(n) lists, says faiss's guide; a power of two.
    return f"IVF{2 ** round(4 * num_rows**0.5).bit_length()},SQ8"


def _build(config: Config, embeddings: EmbeddingsManifest, kind: str, folder: str) -> IndexManifest:
    from retrieval import knn

    source = embeddings_url(config.root, embeddings.encoder)
    streams = {
        modality: knn.VectorStream(source, embeddings.parts, modality) for modality in MODALITIES
    }
    query_ids = knn.evenly_spaced(embeddings.num_rows, config.num_queries)
    queries = {modality: streams[modality].take(query_ids) for modality in MODALITIES}
    recalls: dict[Modality, dict[str, float]] = {}
    with track("index", len(MODALITIES), "indices") as bar:
        for modality in MODALITIES:
            index = knn.build_index(kind, streams[modality], embeddings.dim)
            recalls[modality] = {
                # A picture is its own nearest in an index that it is in: its row is left out.
                f"{asked_by} queries": knn.recall(
                    index,
                    streams[modality],
                    queries[asked_by],
                    RECALL_AT,
                    query_ids if asked_by == modality else None,
                )
                for asked_by in MODALITIES
            }
            _publish_index(folder, modality, index)
            bar.advance(1)
    names = []
    for part in embeddings.parts:
        names.append(metadata_name(part.file_number))
        data = read_file(source, part, names[-1])
        storage.publish_bytes(storage.join(folder, names[-1]), data)
    files = [*names, *(index_name(modality) for modality in MODALITIES)]
    return IndexManifest(
        encoder=embeddings.encoder,
        weights_digest=embeddings.weights_digest,
        dim=embeddings.dim,
        num_rows=embeddings.num_rows,
        kind=kind,
        recall_at_10=recalls,
        num_queries=len(query_ids),
        corpus_digest=embeddings.corpus_digest,
        embeddings_digest=embeddings.digest,
        parts=embeddings.parts,
        files={name: storage.sha256(storage.join(folder, name)) for name in files},
    )


def index_name(modality: Modality) -> str:
    return f"{modality}.index"


def _publish_index(folder: str, modality: Modality, index: "faiss.Index") -> None:
    import faiss

    with storage.publish(storage.join(folder, index_name(modality))) as path:
        faiss.write_index(index, str(path))


def _stamp(embeddings: EmbeddingsManifest, kind: str, num_queries: int) -> Stamp:
    identity = {"encoder": embeddings.encoder, "kind": kind, "num_queries": num_queries}
    return Stamp(
        stage="index",
        input_digest=embeddings.digest,
        config_digest=digest_of(identity),
        config=identity,
    )
