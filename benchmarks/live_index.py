"""What removed rows and filters cost a search, and how soon a takedown is live.

    python -m benchmarks.live_index WORK --num-rows 100_000 --kinds HNSW32 IVF1024,SQ8

Makes a corpus of vectors like CLIP's (benchmarks/clip_like.py) and an index of each kind, and asks
with captions for pictures, one query at a time on one thread: with so many rows removed, and with
so many allowed, once through the index, which skips the others, and once by comparing with all that
are allowed. The ways alternate query by query. Prints the median ms of a query, its ratio to the
search without either, and recall@10 against exact search over the rows that may be shown. Then the
seconds that tombstones take, of addresses also over a million made up. 100,000 rows take some four
minutes on two cores, a million three quarters of an hour.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from benchmarks.clip_like import ClipLike, write_corpus
from benchmarks.machine import processor
from pipeline.takedown.tombstones import Kind, Tombstone, Tombstones, domain_digest, url_digest
from retrieval import index
from retrieval.live.addresses import Addresses
from retrieval.search import Retriever, Snapshot

K = 10
REMOVED = (0.001, 0.1, 0.9)
ALLOWED = (0.9, 0.5, 0.1, 0.02, 0.001)
SEED = 0
NUM_ADDRESSES = 1_000_000

Search = Callable[[np.ndarray], np.ndarray]
"""Queries [n, d] -> rows [n, k]."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="an empty or new folder")
    parser.add_argument("--num-rows", type=int, default=100_000)
    parser.add_argument("--num-queries", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=["Flat", "HNSW32", "IVF1024,SQ8"])
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores; {arguments.num_rows:,} rows of 512, k = {K}")
    parts = ClipLike(arguments.num_rows)
    root = str(arguments.work / "corpus")
    write_corpus(Path(root), map(parts.part, range(parts.num_parts)))
    for kind in arguments.kinds:
        index.run(index.Config(root=root, kind=kind, num_queries=100, overwrite=True))
        compare(Retriever.open(root).state, kind, arguments.num_queries)
    take_down(Retriever.open(root).state)
    take_down_addresses()


def compare(state: Snapshot, kind: str, num_queries: int) -> None:
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(SEED)
    queries = state.vectors(rng.choice(state.num_rows, num_queries, replace=False), "text")
    similarities = queries @ state.vectors(np.arange(state.num_rows), "image").T
    print(f"\n{kind:22} {'':15} {'ms':>8} {'ratio':>6} {'recall@10':>9}")
    plain = partial(_search, state, None, 0)
    print_ways({"everything": plain}, queries, similarities)
    for share in REMOVED:
        gone = np.flatnonzero(rng.random(state.num_rows) < share)
        hits = state.hits(gone, np.zeros(len(gone)))
        without = state.without(_stones("uid", [hit.uid for hit in hits]))
        ways = {
            "everything": plain,
            f"{share:.1%} removed": partial(_search, without, None, 0),
        }
        print_ways(ways, queries, np.where(without.removed, -np.inf, similarities))
    for share in ALLOWED:
        mask = rng.random(state.num_rows) < share
        ways = {
            "everything": plain,
            f"{share:.1%} allowed": partial(_search, state, mask, 0),
            "by comparing": partial(_search, state, mask, state.num_rows),
        }
        print_ways(ways, queries, np.where(mask, similarities, -np.inf))
    faiss.omp_set_num_threads(num_threads)


def print_ways(ways: Mapping[str, Search], queries: np.ndarray, similarities: np.ndarray) -> None:
    """Each query each way in turn. Of the first only the time counts, where there are others."""
    true = np.argsort(-similarities, axis=1)[:, :K]
    ms: dict[str, list[float]] = {name: [] for name in ways}
    recalls: dict[str, list[float]] = {name: [] for name in ways}
    for query, nearest in zip(queries, true, strict=True):
        for name, search in ways.items():
            start = time.perf_counter()
            rows = search(query[None])
            ms[name].append(1000 * (time.perf_counter() - start))
            recalls[name].append(len(np.intersect1d(rows, nearest)) / K)
    base = statistics.median(ms["everything"])
    for name in list(ways)[len(ways) > 1 :]:
        median, recall = statistics.median(ms[name]), statistics.mean(recalls[name])
        print(f"{'':22} {name:>15} {median:8.2f} {median / base:6.2f} {recall:9.3f}")


def _search(
    state: Snapshot, mask: np.ndarray | None, max_exact: int, queries: np.ndarray
) -> np.ndarray:
    """Through the index where more than `max_exact` rows are allowed."""
    state.max_exact = dict.fromkeys(state.max_exact, max_exact)
    _, rows = state.neighbours(queries, K, "image", mask)
    return rows


def take_down(state: Snapshot) -> None:
    """Seconds from tombstones of uids to the state without their rows."""
    uids = [hit.uid for hit in state.hits(np.arange(1000), np.zeros(1000))]
    print(f"\ntombstones, {state.num_rows:,} rows")
    for name, asked in (("first uid", uids[:1]), ("one more", uids[:2]), ("1,000", uids)):
        start = time.perf_counter()
        without = state.without(_stones("uid", asked))
        print(f"{name:22} {time.perf_counter() - start:8.3f} s")
        assert without.removed.sum() == len(asked)


def take_down_addresses() -> None:
    """The same of URLs and domains."""
    urls = [f"https://cdn{i % 5000}.example.org/2020/{i:09d}/a-picture.jpg" for i in range(1000)]
    urls += [f"https://{i % 9973}.example.net/w_600/{i}.jpg?s=1" for i in range(NUM_ADDRESSES)]
    addresses = Addresses(lambda: pa.chunked_array([pa.array(urls)]))
    print(f"\ntombstones, {len(urls):,} addresses")
    for name, stones, num in (
        ("first URL", _stones("url", [url_digest(urls[7])]), 1),
        ("another URL", _stones("url", [url_digest(urls[-1])]), 1),
        ("a domain", _stones("domain", [domain_digest("example.org")]), 1000),
    ):
        start = time.perf_counter()
        rows = addresses.rows(stones)
        print(f"{name:22} {time.perf_counter() - start:8.3f} s")
        assert len(rows) == num


def _stones(kind: Kind, values: list[str]) -> Tombstones:
    return Tombstones(Tombstone(kind, value, None, "", "") for value in values)


if __name__ == "__main__":
    main()
