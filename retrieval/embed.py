"""Embed a corpus: unit vectors of its pictures and captions, by any open_clip model, on Ray.

    carrara embed ROOT --encoder ViT-B-32/laion2b_s34b_b79k

Reads   ROOT/manifest.json, ROOT/shards/
Writes  ROOT/embeddings/<encoder>/ (retrieval/embedding/embeddings.py tells the layout)

Shard by shard: a run that was killed goes on with the shards that are missing, and what it leaves
is the same, byte for byte, however often it was killed and however many workers of that kind of
machine there were. A picture that can't be decoded has no row; how many there were is counted. When
the corpus has grown by shards, the same command embeds only these.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import ConflictError, InputError, ShortfallError
from infra.progress import track
from infra.records import read_record
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline.corpus import Manifest, Shard, read_manifest
from retrieval.embedding.embed_progress import Progress, followed, said, tallied
from retrieval.embedding.embed_workers import make_trial, make_worker, resolved
from retrieval.embedding.embeddings import (
    DEFAULT_ENCODER,
    EmbeddingsManifest,
    Part,
    embeddings_url,
    number_width,
    read_parts,
)


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    encoder: str = DEFAULT_ENCODER
    """MODEL/TAG as open_clip names them, MODEL/path/to/weights, a folder with
    open_clip_config.json, hf-hub:org/name, or the small one shipped: Carrara-S/emoji_clipart."""
    batch_size: int = Field(default=128, ge=1)
    """Pictures encoded at once."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the encoder's arithmetic; auto: bf16 where the workers' hardware has it, fp16 on GPUs that
    lack it, else fp32. What is stored is always float16."""
    device: Annotated[str, EXECUTION_ONLY] = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps|xpu(:\d+)?)$"
    )
    """cpu, cuda, cuda:1 and so on, or auto: a GPU where the worker has one."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace embeddings of another state of the corpus or with other settings."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()


def run(config: Config) -> Summary:
    """Raises InputError for an encoder that can't be had, ShortfallError naming failed shards."""
    with Stopwatch() as watch:
        corpus = read_manifest(config.root)
        with said("embed: finding the encoder's weights"):
            from retrieval.encoding.weights import weights_digest

            digest = weights_digest(config.encoder)
        folder = embeddings_url(config.root, config.encoder)
        parts = _claim(config, corpus, folder, digest)
        missing = [shard for shard in corpus.shards if shard.name not in parts]
        made, progress = _embed(config, corpus, missing, parts)
        parts |= made
        manifest = _manifest(config, corpus, digest, [parts[s.name] for s in corpus.shards])
        _tidy(folder, manifest)
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
            "precision": manifest.precision,
            "shards embedded now": len(made),
            # By the parts: what workers told on their way may not have been heard to the last.
            "samples embedded now": sum(p.num_rows + p.num_undecodable for p in made.values()),
            "working_s": progress.working_s,
            "worker_s": progress.seconds,
        },
    )


def _claim(config: Config, corpus: Manifest, folder: str, digest: str) -> dict[str, Part]:
    """The parts, by shard, that earlier runs left whole of shards as they are now.

    Raises ConflictError where other settings were used or shards have changed, unless what is there
    may be overwritten; with other settings not before the encoder was seen to load.
    """
    stamp = _stamp(config, corpus, digest)
    url = storage.join(folder, "stamp.json")
    if not storage.exists(url):
        claim(folder, stamp)
        return {}
    there = read_record(url, Stamp)
    parts = read_parts(folder)
    shards = {shard.name: shard for shard in corpus.shards}
    current = {n: part for n, part in parts.items() if n in shards and part.is_of(shards[n])}
    if there.config_digest != stamp.config_digest:
        if config.overwrite:
            _try_encoder(config)
        claim(folder, stamp, overwrite=config.overwrite)
        return {}
    has_grown = len(current) == len(parts)
    if there.input_digest != stamp.input_digest and (has_grown or config.overwrite):
        # The manifest first: it is of the corpus as it was.
        stale = [parts[name] for name in parts.keys() - current.keys()]
        stale_files = [name for part in stale for name in (part.record_name, *part.files)]
        for name in ["manifest.json", *stale_files]:
            storage.remove(storage.join(folder, name))
        storage.publish_text(url, stamp.model_dump_json(indent=2) + "\n")
    claim(folder, stamp)
    return current


def _try_encoder(config: Config) -> None:
    """Raises InputError if a worker can't load it: before anything is removed for its sake."""
    with said("embed: trying the encoder before anything is replaced"):
        (outcome,) = map_on_workers(
            partial(make_trial, config),
            [config.encoder],
            workers=resolved(config, {}).workers,
            description="embed",
            unit="encoders",
            is_tracked=False,
        )
    if outcome.error is not None:
        raise InputError(f"{outcome.error}; nothing was replaced")


def _embed(
    config: Config, corpus: Manifest, shards: list[Shard], parts: Mapping[str, Part]
) -> tuple[dict[str, Part], Progress]:
    """The parts of these shards, by shard, and how it went; all of them or a ShortfallError."""
    if not shards:
        return {}, Progress()
    made: dict[str, Part] = {}
    failed: dict[str, str | None] = {}
    there = storage.list_files(embeddings_url(config.root, config.encoder))
    with ExitStack() as stack:
        with said("embed: starting workers"):
            config = resolved(config, parts)
            report, progress = stack.enter_context(tallied(config.workers))
        bar = stack.enter_context(track("embed", sum(s.num_samples for s in shards), "images"))
        stack.enter_context(followed(bar, progress))
        for outcome in map_on_workers(
            partial(make_worker, config, number_width(corpus, there), report),
            shards,
            workers=config.workers,
            description="embed",
            unit="images",
            is_tracked=False,
        ):
            if outcome.result is None:
                failed[outcome.item.name] = outcome.error
            else:
                made[outcome.item.name] = outcome.result
        last = progress()
    if failed:
        raise ShortfallError(
            f"embed: {len(failed)} of {len(corpus.shards)} shards failed "
            f"({', '.join(sorted(failed))}; first error: {failed[min(failed)]}); run the command "
            "again to embed only these"
        )
    return made, last


def _tidy(folder: str, manifest: EmbeddingsManifest) -> None:
    """Without what killed runs left: other readers take every array that they find."""
    storage.sweep(folder)
    arrays = {name for name in storage.list_files(folder) if name.endswith((".npy", ".parquet"))}
    for name in arrays - manifest.files.keys():
        storage.remove(storage.join(folder, name))


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
    precisions = {part.precision: part.shard for part in parts}
    if len(precisions) > 1:
        raise ConflictError(
            f"embed {config.root}: workers on different hardware used different precisions "
            f"({', '.join(f'{name} for {shard}' for name, shard in sorted(precisions.items()))}); "
            "say which with --precision, and replace what is there with --overwrite"
        )
    counts = {"embedded": sum(part.num_rows for part in parts)}
    if num_undecodable := sum(part.num_undecodable for part in parts):
        counts["undecodable picture"] = num_undecodable
    return EmbeddingsManifest(
        encoder=config.encoder,
        weights_digest=weights_digest,
        precision=min(precisions, default=config.precision),
        dim=parts[0].dim if parts else 0,
        corpus_digest=corpus.digest,
        counts=counts,
        parts=parts,
        files={name: digest for part in parts for name, digest in part.files.items()},
    )
