"""Embed a corpus: unit vectors of its pictures and captions, by any open_clip model, on Ray.

    carrara embed ROOT --encoder ViT-B-32/laion2b_s34b_b79k

Reads   ROOT/manifest.json, ROOT/shards/
Writes  ROOT/embeddings/<encoder>/ (retrieval/embeddings.py tells the layout)

Shard by shard: a run that was killed goes on with the shards that are missing, and what it leaves
is the same, byte for byte, however often it was killed and however many workers there were. A
picture that can't be decoded has no row; how many there were is counted.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import ShortfallError
from infra.records import read_record
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline.corpus import Manifest, Shard, read_manifest
from retrieval.embeddings import (
    DEFAULT_ENCODER,
    EmbeddingsManifest,
    Part,
    embeddings_url,
    number_width,
    part_name,
)

if TYPE_CHECKING:
    from retrieval.encoder import Encoder


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    encoder: str = DEFAULT_ENCODER
    """MODEL/TAG as open_clip names them, MODEL/path/to/weights, a folder with
    open_clip_config.json, hf-hub:org/name, or the small one shipped: Carrara-S/emoji_clipart."""
    batch_size: int = Field(default=128, ge=1)
    """Pictures encoded at once."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the encoder's arithmetic; what is stored is always float16."""
    device: Annotated[str, EXECUTION_ONLY] = "auto"
    """cpu, cuda, or auto: a GPU where the worker has one (see workers.gpus-per-worker)."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace embeddings of another state of the corpus or with other settings."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()


def run(config: Config) -> Summary:
    """Raises InputError for an encoder that can't be had, ShortfallError naming failed shards."""
    with Stopwatch() as watch:
        corpus = read_manifest(config.root)
        from retrieval.weights import weights_digest

        digest = weights_digest(config.encoder)
        folder = embeddings_url(config.root, config.encoder)
        claim(folder, _stamp(config, corpus, digest), overwrite=config.overwrite)
        parts = _finished(folder, corpus)
        num_before = len(parts)
        parts |= _embed(config, corpus, [s for s in corpus.shards if s.name not in parts])
        manifest = _manifest(config, corpus, digest, [parts[s.name] for s in corpus.shards])
        storage.sweep(folder)
        text = manifest.model_dump_json(indent=2) + "\n"
        storage.publish_text(storage.join(folder, "manifest.json"), text)
    return Summary(
        stage="embed",
        num_in=corpus.num_samples,
        num_out=manifest.num_rows,
        counts=manifest.counts,
        seconds=watch.seconds,
        outputs={"embeddings": folder},
        details={
            "encoder": config.encoder,
            "dim": manifest.dim,
            "shards embedded now": len(parts) - num_before,
        },
    )


def _embed(config: Config, corpus: Manifest, shards: list[Shard]) -> dict[str, Part]:
    """The parts of these shards, by shard; all of them or a ShortfallError."""
    parts, failed = {}, {}
    for outcome in map_on_workers(
        partial(_make_worker, config, number_width(corpus)),
        shards,
        workers=config.workers,
        description="embed",
        unit="samples",
        size=lambda shard: shard.num_samples,
    ):
        if outcome.result is None:
            failed[outcome.item.name] = outcome.error
        else:
            parts[outcome.item.name] = outcome.result
    if failed:
        raise ShortfallError(
            f"embed: {len(failed)} of {len(corpus.shards)} shards failed "
            f"({', '.join(sorted(failed))}; first error: {failed[min(failed)]}); run the command "
            "again to embed only these"
        )
    return parts


def _make_worker(config: Config, width: int) -> Callable[[Shard], Part]:
    from retrieval.encoder import load_encoder
    from retrieval.shard_embedding import ShardEmbedder, limit_threads

    num_threads = max(1, int(config.workers.cpus_per_worker))
    limit_threads(num_threads)
    encoder: Encoder = load_encoder(config.encoder, config.device, config.precision)
    return ShardEmbedder(encoder, config.root, width, config.batch_size, num_threads)


def _finished(folder: str, corpus: Manifest) -> dict[str, Part]:
    """The parts that an earlier run left whole, by shard."""
    width = number_width(corpus)
    names = {part_name(shard.name, width): shard.name for shard in corpus.shards}
    there = storage.list_files(folder)
    parts = {
        names[name]: read_record(storage.join(folder, name), Part)
        for name in sorted(there & names.keys())
    }
    return {shard: part for shard, part in parts.items() if there >= part.files.keys()}


def _stamp(config: Config, corpus: Manifest, weights_digest: str) -> Stamp:
    identity = config.identity() | {"weights_digest": weights_digest}
    return Stamp(
        stage="embed",
        input_digest=corpus.digest,
        config_digest=digest_of(identity),
        config=identity,
    )


def _manifest(
    config: Config, corpus: Manifest, weights_digest: str, parts: list[Part]
) -> EmbeddingsManifest:
    counts = {"embedded": sum(part.num_rows for part in parts)}
    if num_undecodable := sum(part.num_undecodable for part in parts):
        counts["undecodable picture"] = num_undecodable
    return EmbeddingsManifest(
        encoder=config.encoder,
        weights_digest=weights_digest,
        precision=config.precision,
        dim=parts[0].dim if parts else 0,
        corpus_digest=corpus.digest,
        counts=counts,
        parts=parts,
        files={name: digest for part in parts for name, digest in part.files.items()},
    )
