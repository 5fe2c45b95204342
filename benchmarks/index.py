"""An index to a promise beside what others build within the same memory.

    python -m benchmarks.index WORK                                   1,000,000 x 512, 2.4 kB a row
    python -m benchmarks.index WORK --num-rows 100_000 --memory-a-row 700

Makes vectors as CLIP gives them (clip_like.py), and one index of the pictures by each of: Carrara's
choice for recall 0.95, what autofaiss 2.18 chooses (in an environment of its own), usearch's
graph, and faiss Flat. Each is built in a process of its own within the same memory for the index.
Then all are asked new captions and new pictures, which none has seen, one at a time on one thread,
in turns, at settings from narrow to wide. Prints for each what it took to build, its queries a
second where it finds 95 of 100 (or the most that it finds), and its recall at equal times.

With 2.4 kB a row autofaiss builds a graph; with 700 bytes it quantizes, which was stopped after 14
minutes over 100,000 rows on two cores. A million rows take half an hour in all.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from rich.console import Console

from benchmarks.clip_like import ENCODER, ClipLike, write_corpus
from benchmarks.peers import peer_python
from infra.records import read_record
from infra.summary import table_of
from retrieval import knn
from retrieval.embedding.embeddings import MODALITIES, EmbeddingsManifest, Modality, embeddings_url
from retrieval.indexing.choice import Corpus, Goal, choose
from retrieval.indexing.exam import Exam
from retrieval.indexing.kinds import lists_of
from retrieval.indexing.manifest import Parameters, Promise
from retrieval.indexing.promise import PROCESS_BYTES, SAMPLE_SHARE
from retrieval.live.among import search_among

RECALL = 0.95
K = 10
K_FACTORS = (4, 8, 16, 32, 64, 128)
BREADTHS = (16, 32, 64, 128, 256, 512, 1024)
MOST_PROBES = 1024
USEARCH_LINKS_BYTES = 200
"""A row, at its 16 links, 32 on the lowest level, of 5 bytes."""
TIMES_MS = (0.25, 0.5, 1.0, 2.0, 5.0)
"""At which recalls are compared."""
ROUNDS = 3
PEER = ("autofaiss==2.18.0", "faiss-cpu==1.8.0.post1", "numpy<2", "pyarrow<21", "setuptools<80")
"""The same autofaiss as clip-retrieval's. With faiss 1.15 it fails as soon as it quantizes:
`OPQMatrix.__init__() got an unexpected keyword argument 'M'`."""
ROOT = Path(__file__).parents[1]

AUTOFAISS = """
import json, resource, sys, time
from autofaiss import build_index
folder, out, memory, available = sys.argv[1:]
start = time.perf_counter()
_, infos = build_index(
    embeddings=folder, index_path=out, index_infos_path=out + ".json",
    max_index_memory_usage=memory, current_memory_available=available, metric_type="ip",
    max_index_query_time_ms=10, verbose=40,
)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "kind": infos["index_key"],
    "parameters": infos["index_param"],
}))
"""

WORKER = """
import json, resource, sys, time
from benchmarks import index
start = time.perf_counter()
kind = index.{name}(*sys.argv[1:])
print(json.dumps({{
    "seconds": time.perf_counter() - start,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "kind": kind,
}}))
"""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Setting:
    ask: Callable[[np.ndarray], np.ndarray]
    """A query [1, d] -> row numbers [1, k]."""
    prepare: Callable[[], None] = _nothing
    """Called before the first query."""


@dataclass
class Contender:
    name: str
    kind: str
    build_s: float
    peak_bytes: int
    size_bytes: int
    settings: dict[str, Setting]
    asked: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    """By the kind of query and the setting: recall and mean milliseconds, a pair a round."""

    def curve(self, queries: str) -> list[tuple[float, float]]:
        """Recall and milliseconds of each setting, the median of its rounds."""
        return [
            (float(np.median([one[0] for one in each])), float(np.median([one[1] for one in each])))
            for each in self.asked[queries].values()
        ]


def main() -> None:
    arguments = _arguments()
    vectors = ClipLike(arguments.num_rows, dim=arguments.dim)
    work = Path(arguments.work)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"{vectors.num_rows:,} x {vectors.dim}"
    )
    root = _written(work / f"vectors-{vectors.num_rows}-{vectors.dim}", vectors)
    exams = _exams(root, vectors, arguments.num_queries)
    for bytes_a_row in arguments.memory_a_row:
        memory = bytes_a_row * vectors.num_rows
        contenders = list(_contenders(arguments, work, root, memory))
        _ask_in_turns(contenders, exams)
        _print(f"within {memory / 1e6:,.0f} MB for the index of pictures", contenders, exams)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", help="folder for vectors and indices, kept")
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--memory-a-row", type=int, nargs="*", default=[2400])
    parser.add_argument("--num-queries", type=int, default=500, help="of each kind")
    parser.add_argument("--peer-python", help="of an environment that has autofaiss")
    parser.add_argument("--without", nargs="*", default=[], help="autofaiss, usearch, Flat")
    return parser.parse_args()


def _written(root: Path, vectors: ClipLike) -> Path:
    if not (root / "manifest.json").exists():
        print("making the vectors", file=sys.stderr, flush=True)
        write_corpus(root, (vectors.part(number) for number in range(vectors.num_parts)))
    return root


def _exams(root: Path, vectors: ClipLike, num_queries: int) -> dict[str, Exam]:
    """Of the index of pictures, by the kind of query."""
    stream = _streams(root)["image"]
    pictures, captions = vectors.unseen(num_queries)
    exams = {}
    for name, rows in (("text", captions), ("image", pictures)):
        queries = rows.astype(np.float32)
        _, ids = knn.search_exactly(stream, queries, K)
        exams[name] = Exam(queries, np.full(len(queries), -1), ids, K)
    return exams


def _streams(root: Path) -> dict[Modality, knn.Vectors]:
    folder = embeddings_url(str(root), ENCODER)
    manifest = read_record(f"{folder}/manifest.json", EmbeddingsManifest)
    return {modality: knn.VectorStream(folder, manifest.parts, modality) for modality in MODALITIES}


# Building


def _contenders(
    arguments: argparse.Namespace, work: Path, root: Path, memory: int
) -> Iterator[Contender]:
    place = str(work / f"{root.name}-{memory}")
    yield _ours(root, f"{place}-carrara.index", memory)
    if "autofaiss" not in arguments.without:
        python = arguments.peer_python or str(peer_python(work / "peer", *PEER))
        yield _autofaiss(python, root, f"{place}-autofaiss.index", memory)
    if "usearch" not in arguments.without:
        yield _usearch(root, f"{place}-usearch.index", memory)
    if "Flat" not in arguments.without:
        yield _flat(root, f"{place}-flat.index")


def _worker(program: Callable[..., str], *arguments: object) -> dict[str, Any]:
    """What a function of this module takes in a process of its own, and what it returns."""
    code = WORKER.format(name=program.__name__)
    return _run([sys.executable, "-c", code, *map(str, arguments)])


def _run(command: list[str]) -> dict[str, Any]:
    print("building with", command[-3:], file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    built: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return built


def build_ours(root: str, path: str, memory: str) -> str:
    """Chosen by measuring, built, checked and written; returns its kind."""
    promise = Promise(recall=RECALL, ram_bytes=_ram(int(memory)))
    chosen = choose(Corpus.of(_streams(Path(root)), 500), "image", Goal(None, promise, 500))
    faiss.write_index(chosen.index, path)
    return chosen.kind


def _ram(memory: int) -> int:
    """With which an index of so many bytes may be built, and two such served."""
    return max(2 * memory, round((memory + PROCESS_BYTES) / (1 - 2 / SAMPLE_SHARE)))


def build_usearch(root: str, path: str, memory: str) -> str:
    """A graph over half precision where that fits the memory, else over 8 bits."""
    from usearch.index import Index

    stream = _streams(Path(root))["image"]
    fits = stream.num_rows * (2 * stream.dim + USEARCH_LINKS_BYTES) <= int(memory)
    kind = "f16" if fits else "i8"
    index = Index(ndim=stream.dim, metric="ip", dtype=kind)
    start = 0
    for rows in stream:
        index.add(np.arange(start, start + len(rows)), rows)
        start += len(rows)
    index.save(path)
    return f"HNSW, {kind}"


def build_flat(root: str, path: str) -> str:
    stream = _streams(Path(root))["image"]
    index = faiss.IndexFlatIP(stream.dim)
    for rows in stream:
        index.add(rows)
    faiss.write_index(index, path)
    return "Flat"


def _ours(root: Path, path: str, memory: int) -> Contender:
    built = _worker(build_ours, root, path, memory)
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    lists = lists_of(built["kind"])
    choices: list[Parameters] = [{}]
    if lists is not None:
        choices = [{"nprobe": num} for num in _probes(lists)]
    elif "HNSW" in built["kind"]:
        choices = [{"efSearch": breadth} for breadth in BREADTHS]
    if "Refine" in built["kind"]:
        choices = [one | {"k_factor": factor} for one in choices for factor in K_FACTORS]
    settings = {str(one): Setting(partial(_search_ours, index, one)) for one in choices}
    return _contender("carrara", path, built, settings)


def _search_ours(index: faiss.Index, parameters: Parameters, query: np.ndarray) -> np.ndarray:
    return search_among(index, query, K, None, parameters)[1]


def _autofaiss(python: str, root: Path, path: str, memory: int) -> Contender:
    folder = f"{embeddings_url(str(root), ENCODER)}/img_emb"
    limits = [f"{memory}B", f"{_ram(memory)}B"]
    built = _run([python, "-c", AUTOFAISS, folder, path, *limits])
    index = faiss.read_index(path)
    own = str(built["parameters"])
    choices = [own]
    if lists := lists_of(built["kind"]):
        # As autofaiss sets them: external/optimize.py, `get_optimal_hyperparameters`.
        more = ",efSearch={0}" if "_HNSW" in built["kind"] else ""
        more += ",ht=2048" if "PQ" in built["kind"] else ""
        choices += [f"nprobe={num}" + more.format(2 * num) for num in _probes(lists)]
    elif "HNSW" in built["kind"]:
        choices += [f"efSearch={breadth}" for breadth in BREADTHS]
    space = faiss.ParameterSpace()
    settings = {
        one: Setting(partial(_search_faiss, index), partial(_set, space, index, one))
        for one in choices
    }
    built["kind"] += f" ({own})"
    return _contender("autofaiss", path, built, settings)


def _search_faiss(index: faiss.Index, query: np.ndarray) -> np.ndarray:
    ids: np.ndarray = index.search(query, K)[1]
    return ids


def _set(space: Any, index: faiss.Index, parameters: str) -> None:
    if parameters:
        space.set_index_parameters(index, parameters)


def _usearch(root: Path, path: str, memory: int) -> Contender:
    from usearch.index import Index

    built = _worker(build_usearch, root, path, memory)
    index = Index.restore(path, view=True)
    assert index is not None
    settings = {
        f"expansion {breadth}": Setting(
            partial(_search_usearch, index), partial(setattr, index, "expansion_search", breadth)
        )
        for breadth in BREADTHS
    }
    return _contender("usearch", path, built, settings)


def _search_usearch(index: Any, query: np.ndarray) -> np.ndarray:
    ids: np.ndarray = index.search(query[0], K, threads=1).keys[None].astype(np.int64)
    return ids


def _flat(root: Path, path: str) -> Contender:
    built = _worker(build_flat, root, path)
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    return _contender("faiss Flat", path, built, {"": Setting(partial(_search_faiss, index))})


def _contender(
    name: str, path: str, built: dict[str, Any], settings: dict[str, Setting]
) -> Contender:
    return Contender(
        name=name,
        kind=built["kind"],
        build_s=built["seconds"],
        peak_bytes=built["peak"],
        size_bytes=Path(path).stat().st_size,
        settings=settings,
    )


def _probes(lists: int) -> Iterator[int]:
    probes = 4
    while probes <= min(lists, MOST_PROBES):
        yield probes
        probes *= 2


# Asking


def _ask_in_turns(contenders: Sequence[Contender], exams: dict[str, Exam]) -> None:
    faiss.omp_set_num_threads(1)
    for _ in range(ROUNDS):
        for contender in contenders:
            for queries, exam in exams.items():
                _ask(contender, queries, exam)
    faiss.omp_set_num_threads(os.cpu_count() or 1)


def _ask(contender: Contender, queries: str, exam: Exam) -> None:
    for name, setting in contender.settings.items():
        setting.prepare()
        found = np.full((len(exam.queries), K), -1)
        seconds = []
        for place, query in enumerate(exam.queries):
            start = time.perf_counter()
            ids = setting.ask(query[None])
            seconds.append(time.perf_counter() - start)
            found[place, : ids.shape[1]] = ids
        asked = contender.asked.setdefault(queries, {}).setdefault(name, [])
        asked.append((float(exam.shares(found).mean()), 1000 * float(np.median(seconds))))


def _print(title: str, contenders: Sequence[Contender], exams: dict[str, Exam]) -> None:
    console = Console(width=200)
    console.print(f"\n[bold]{title}[/]")
    console.print(table_of([_built_row(contender, contenders) for contender in contenders]))
    for queries in exams:
        console.print(f"{queries} queries, one at a time on one thread")
        console.print(table_of([_asked_row(contender, queries) for contender in contenders]))


def _built_row(contender: Contender, contenders: Sequence[Contender]) -> dict[str, object]:
    seconds = {one.name: one.build_s for one in contenders}
    peer = seconds.get("autofaiss")
    return {
        "index": contender.name,
        "kind": contender.kind,
        "MB": round(contender.size_bytes / 1e6),
        "build s": round(contender.build_s),
        "times autofaiss": f"{contender.build_s / peer:.2f}" if peer else "",
        "peak MB building": round(contender.peak_bytes / 1e6),
    }


def _asked_row(contender: Contender, queries: str) -> dict[str, object]:
    """Queries a second at RECALL, and the best recall within each of TIMES_MS."""
    curve = contender.curve(queries)
    enough = [ms for recall, ms in curve if recall >= RECALL]
    most = max(recall for recall, _ in curve)
    row: dict[str, object] = {
        "index": contender.name,
        f"queries/s at {RECALL}": f"{1000 / min(enough):,.0f}" if enough else f"finds {most:.3f}",
    }
    for limit in TIMES_MS:
        within = [recall for recall, ms in curve if ms <= limit]
        row[f"recall in {limit:g} ms"] = f"{max(within):.3f}" if within else ""
    return row


if __name__ == "__main__":
    main()
