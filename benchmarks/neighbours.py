"""Is `carrara score --signals neighbours` linear in the corpus? Twice the rows, twice the time?

    python -m benchmarks.neighbours WORK
    python -m benchmarks.neighbours WORK --num-rows 5000 --num-workers 1

Makes corpora of CLIP-like vectors (benchmarks/clip_like.py) of so many rows and of twice as many,
indexes each and scores each by the command's own `run`, on Ray, in turns. Prints seconds, seconds
for 1,000 samples, and the ratio; what is learned once a corpus costs the same at any size, and is
told apart. A graph index answers in time that grows with the logarithm of its rows, an exact one
with the rows themselves: then the whole is quadratic, and the ratio shows it. Four minutes on two
cores for 20,000 rows.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.clip_like import ClipLike, write_corpus
from infra import storage
from infra.cluster import Workers
from pipeline import score
from pipeline.corpus import SUCCESS, Manifest, read_manifest, shard_url, write_manifest
from retrieval import index
from retrieval.captions.mix import fit
from retrieval.captions.scores import TEMPERATURE
from retrieval.embedding.embeddings import embeddings_url, read_embeddings_manifest, read_metadata
from retrieval.search import Retriever
from retrieval.signals.neighbours import K_MAX

ROWS_A_SHARD = 2500


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--num-rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--kind", default="HNSW32")
    parser.add_argument("--num-workers", type=int, default=2, help="0: without Ray")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    sizes = (arguments.num_rows, 2 * arguments.num_rows)
    roots = {size: prepare(arguments.work, size, arguments.dim, arguments.kind) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    learning: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(arguments.repeats):
        for size, root in roots.items():
            seconds[size].append(score_anew(root, arguments.num_workers))
            learning[size].append(learn(root))
    print(
        f"{arguments.kind}, {arguments.dim} numbers, {arguments.num_workers or 'no'} workers on "
        f"Ray, {os.cpu_count()} cores, medians of {arguments.repeats}"
    )
    print(f"{'rows':>10}{'score, s':>12}{'of it mix, s':>14}{'s for 1,000 beside':>20}")
    beside = {}
    for size in sizes:
        whole, once = statistics.median(seconds[size]), statistics.median(learning[size])
        beside[size] = whole - once
        print(f"{size:10,}{whole:12.1f}{once:14.1f}{1000 * (whole - once) / size:20.3f}")
    print(f"twice the rows took {beside[sizes[1]] / beside[sizes[0]]:.2f} times as long")


def prepare(work: Path, num_rows: int, dim: int, kind: str) -> str:
    """A corpus of embeddings with the rows that `score` names; made once."""
    root = work / f"neighbours-{num_rows}-{dim}-{kind.replace(',', '_')}"
    if not (root / "index").exists():
        corpus = ClipLike(num_rows, ROWS_A_SHARD, dim)
        encoder = write_corpus(root, map(corpus.part, range(corpus.num_parts)))
        _write_rows(str(root), encoder)
        index.run(index.Config(root=str(root), kind=kind))
    return str(root)


def _write_rows(root: str, encoder: str) -> None:
    """The shards' parquets, and manifests that know of them."""
    before, folder = read_manifest(root), embeddings_url(root, encoder)
    embeddings = read_embeddings_manifest(root, encoder, before)
    shards = []
    for shard, part in zip(before.shards, embeddings.parts, strict=True):
        uids = read_metadata(folder, part, ["uid"])["uid"]
        url = shard_url(root, shard.name, ".parquet")
        with storage.publish(url) as path:
            pq.write_table(pa.table({"uid": uids, "status": [SUCCESS] * len(uids)}), path)
        shards.append(shard.model_copy(update={"rows_sha256": storage.sha256(url)}))
    after = Manifest(**(dict(before) | {"shards": shards}))
    write_manifest(root, after)
    embeddings = embeddings.model_copy(update={"corpus_digest": after.digest})
    text = embeddings.model_dump_json()
    storage.publish_text(storage.join(folder, "manifest.json"), text)


def score_anew(root: str, num_workers: int) -> float:
    storage.remove(storage.join(root, "columns"))
    workers = Workers(num_workers=num_workers) if num_workers else Workers(local=True)
    start = time.perf_counter()
    score.run(score.Config(root=root, signals=("neighbours",), workers=workers))
    return time.perf_counter() - start


def learn(root: str) -> float:
    retriever = Retriever.open(root)
    start = time.perf_counter()
    fit(retriever, np.arange(retriever.num_rows), K_MAX, TEMPERATURE)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
