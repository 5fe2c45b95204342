"""Index embeddings for search: one faiss index of the pictures, one of the captions.

    carrara index ROOT --encoder ViT-B-32/laion2b_s34b_b79k

Reads   ROOT/embeddings/<encoder>/
Writes  ROOT/index/<encoder>/ (retrieval/indexing/manifest.py tells the layout)

An index answers nearly, not exactly. How nearly differs between queries by words and by picture,
so recall@10 against exact search is measured for both, and stored and told.

When the corpus has grown, what was added becomes a segment of its own; `--compact` makes one index
of all segments.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import ConflictError, InputError
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline.corpus import read_manifest
from retrieval.embedding.embeddings import (
    MODALITIES,
    EmbeddingsManifest,
    Part,
    choose_encoder,
    embeddings_url,
    index_url,
    read_embeddings_manifest,
)
from retrieval.indexing.manifest import IndexManifest

if TYPE_CHECKING:
    from retrieval.indexing.choice import Goal


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    encoder: str | None = None
    """Whose embeddings; none: the only ones there are."""
    kind: str | None = None
    """A faiss factory string; none: Flat up to 50,000 rows, beyond that lists of product-quantized
    vectors with candidates compared again at half precision."""
    recall: float | None = Field(default=None, gt=0, le=1)
    """A promise: of the 10 truly nearest rows this share is found, for queries by words and by
    picture alike; the kind of index and its search parameters are chosen by measuring."""
    ram: str | None = None
    """With recall: what both indices may take in searches, and building them, as in 8GB."""
    p99: str | None = None
    """With recall: what 99 of 100 queries may take, each alone on one thread, as in 20ms."""
    num_queries: int = Field(default=500, ge=1)
    """Captions and pictures that recall is measured with."""
    compact: Annotated[bool, EXECUTION_ONLY] = False
    """Make one segment of all."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace an index of other embeddings or of another kind."""


def run(config: Config) -> Summary:
    """Raises InputError where there are no embeddings, ConfigError for a kind that can't be,
    ConflictError where rows that are indexed have changed."""
    with Stopwatch() as watch:
        corpus = read_manifest(config.root)
        encoder = choose_encoder(config.root, "embeddings", config.encoder)
        embeddings = read_embeddings_manifest(config.root, encoder, corpus)
        if embeddings.num_rows == 0:
            raise InputError(f"{config.root}: the embeddings by {encoder!r} have no rows to index")
        from retrieval.indexing.choice import Goal
        from retrieval.indexing.promise import promise_of

        promise = promise_of(config.recall, config.ram, config.p99)
        goal = Goal(config.kind, promise, config.num_queries)
        goal.check(embeddings.num_rows, embeddings.dim)
        folder = index_url(config.root, encoder)
        claim(folder, _stamp(config, embeddings), overwrite=config.overwrite)
        manifest = _brought_up_to_date(config, goal, embeddings, folder)
    return Summary(
        stage="index",
        num_in=embeddings.num_rows,
        num_out=manifest.num_rows,
        counts={f"{modality} vectors": manifest.num_rows for modality in MODALITIES},
        seconds=watch.seconds,
        outputs={"index": folder},
        details={
            "encoder": encoder,
            "kinds": [segment.kinds for segment in manifest.segments],
            "num_queries": manifest.num_queries,
            "recall_at_10": {
                modality: {f"{queries} queries": one.recall_at_10 for queries, one in by.items()}
                for modality, by in manifest.measured.items()
            },
        },
        table=_table(manifest),
    )


def _table(manifest: IndexManifest) -> list[dict[str, object]]:
    """What was tried, and last what was taken."""
    taken = [one for by_queries in manifest.measured.values() for one in by_queries.values()]
    rows: list[dict[str, object]] = []
    for word, measured in (("tried", manifest.frontier), ("taken", taken)):
        for one in measured:
            settings = ", ".join(f"{name} {value}" for name, value in one.parameters.items())
            row: dict[str, object] = {
                "": word,
                "index": one.index,
                "queries": one.queries,
                "rows": one.num_rows,
                "kind": one.kind,
                "set to": settings,
                "recall@10": round(one.recall_at_10, 4),
            }
            if manifest.promise is not None:
                row |= {
                    "p50 ms": one.p50_ms,
                    "p99 ms": one.p99_ms,
                    "bytes a row": one.bytes_a_row,
                    "build s": one.build_s,
                }
            rows.append(row)
    return rows


def _brought_up_to_date(
    config: Config, goal: "Goal", embeddings: EmbeddingsManifest, folder: str
) -> IndexManifest:
    from retrieval.indexing import segments

    source = embeddings_url(config.root, embeddings.encoder)
    before = segments.current(folder)
    if before is not None and (config.overwrite or config.compact):
        is_whole = len(before.segments) == 1 and before.embeddings_digest == embeddings.digest
        before = before if is_whole else None
    if before is None:
        return segments.anew(source, embeddings, goal, folder)
    added = _added_parts(config.root, before, embeddings)
    if added or before.corpus_digest != embeddings.corpus_digest:
        return segments.appended(source, embeddings, goal, folder, before, added)
    return before


def _added_parts(root: str, before: IndexManifest, embeddings: EmbeddingsManifest) -> list[Part]:
    """Those that no segment has; raises ConflictError where others are not as they were."""
    parts = {part.shard: part for part in embeddings.parts}
    for part in before.parts:
        now = parts.pop(part.shard, None)
        if now is None or now.files != part.files:
            state = "gone" if now is None else "another"
            raise ConflictError(
                f"{root}: the embeddings of shard {part.shard} are {state} since they were "
                f"indexed; build anew with `carrara index {root} --encoder {embeddings.encoder} "
                "--overwrite`"
            )
    return [part for part in parts.values() if part.num_rows]


def _stamp(config: Config, embeddings: EmbeddingsManifest) -> Stamp:
    identity = config.identity() | {"encoder": embeddings.encoder}
    return Stamp(
        stage="index",
        # Not of the embeddings: they may grow.
        input_digest=digest_of([embeddings.encoder, embeddings.weights_digest]),
        config_digest=digest_of(identity),
        config=identity,
    )
