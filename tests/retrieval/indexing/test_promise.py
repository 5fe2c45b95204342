import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from benchmarks.clip_like import ENCODER, ClipLike, write_corpus
from infra import storage
from infra.errors import ConfigError
from infra.records import read_record
from infra.summary import Summary
from retrieval import index, knn
from retrieval.embedding.embeddings import Modality, index_url
from retrieval.indexing import choice, kinds
from retrieval.indexing.exam import Exam
from retrieval.indexing.manifest import IndexManifest, Measurement, Parameters, Promise, widest_of
from retrieval.indexing.promise import (
    PROCESS_BYTES,
    in_words,
    promise_of,
    ram_needed,
    refusal,
)
from retrieval.live.among import search_among
from retrieval.search import Retriever

REPOSITORY = Path(__file__).parents[3]
VECTORS = ClipLike(num_rows=2000, rows_a_part=1000, dim=32)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    write_corpus(tmp_path, (VECTORS.part(number) for number in range(VECTORS.num_parts)))
    return str(tmp_path)


@pytest.fixture
def large_from_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few rows already are more than Flat is taken for unseen."""
    monkeypatch.setattr(choice, "MAX_FLAT", 1000)


def run(root: str, **settings: Any) -> Summary:
    return index.run(index.Config(root=root, num_queries=60, **settings))


def manifest_of(root: str) -> IndexManifest:
    return read_record(storage.join(index_url(root, ENCODER), "index.json"), IndexManifest)


@pytest.mark.parametrize(
    ("ram", "num_bytes"),
    [("8GB", 8 * 10**9), ("1.5 gb", 15 * 10**8), ("500MB", 5 * 10**8), ("2GiB", 2**31)],
)
def test_ram_is_read_as_it_is_written(ram: str, num_bytes: int) -> None:
    assert promise_of(0.9, ram, None) == Promise(recall=0.9, ram_bytes=num_bytes)


@pytest.mark.parametrize(("p99", "ms"), [("20ms", 20), ("0.5s", 500), ("800us", 0.8)])
def test_p99_is_read_as_it_is_written(p99: str, ms: float) -> None:
    promise = promise_of(0.9, "1GB", p99)
    assert promise is not None
    assert promise.p99_ms == pytest.approx(ms)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0.95, "8 apples", None), "ram '8 apples': expected a size such as 8GB"),
        ((0.95, "8GB", "20"), "p99 '20': expected a time such as 20ms"),
        ((0.95, None, None), "without ram"),
        ((None, "8GB", None), "ram '8GB' without recall"),
        ((None, None, "20ms"), "p99 '20ms' without recall"),
    ],
)
def test_half_a_promise_is_a_mistake(settings: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        promise_of(*settings)


def test_what_is_asked_for_suffices() -> None:
    needed = ram_needed("IVF4096,SQ8", 1_000_000, 512)
    promise = promise_of(0.9, in_words(needed), None)
    assert promise is not None
    assert needed <= promise.ram_bytes < 1.1 * needed


def test_a_ram_that_no_kind_fits_is_refused_with_what_one_needs(corpus: str) -> None:
    with pytest.raises(ConfigError, match=r"ram 100MB: too little .* needs --ram \d+") as refused:
        run(corpus, recall=0.9, ram="100MB")
    assert "\n" not in str(refused.value)
    needed = str(refused.value).rsplit(" ", 1)[-1]
    assert run(corpus, recall=0.9, ram=needed).num_out == 2000


def test_a_small_corpus_is_scanned_and_the_promise_is_on_record(corpus: str) -> None:
    run(corpus, recall=0.95, ram="1GB")
    manifest = manifest_of(corpus)
    assert manifest.kind == "Flat"
    assert manifest.promise == Promise(recall=0.95, ram_bytes=10**9)
    assert not manifest.frontier
    for by_queries in manifest.measured.values():
        for one in by_queries.values():
            assert one.recall_at_10 == 1.0
            assert one.p50_ms is not None
            assert one.p99_ms is not None
            assert one.p50_ms <= one.p99_ms


@pytest.mark.usefixtures("large_from_1000")
def test_a_large_corpus_gets_the_quickest_kind_that_keeps_the_promise_on_all_rows(
    corpus: str,
) -> None:
    summary = run(corpus, recall=0.9, ram="1GB", p99="10s")
    manifest = manifest_of(corpus)
    tried = {one.kind for one in manifest.frontier}
    assert tried == set(kinds.candidates(2000, 32))
    for modality, by_queries in manifest.measured.items():
        for queries, one in by_queries.items():
            assert one.recall_at_10 >= 0.9
            assert one.p99_ms is not None
            assert one.p99_ms <= 10_000
            assert one.num_rows == 2000
            assert manifest.segments[0].parameters[modality][queries] == one.parameters
    rows = summary.table
    assert len(rows) == 2 * 2 * (len(tried) + 1)
    assert {"recall@10", "p50 ms", "p99 ms", "bytes a row", "build s"} <= rows[0].keys()


@pytest.mark.usefixtures("large_from_1000")
def test_a_time_that_no_kind_keeps_is_refused_with_what_was_measured(corpus: str) -> None:
    with pytest.raises(
        ConfigError, match=r"p99 0\.0001 ms: can't be promised .* --p99 \d"
    ) as refused:
        run(corpus, recall=0.9, ram="1GB", p99="0.1us")
    assert "\n" not in str(refused.value)
    assert not storage.exists(storage.join(index_url(corpus, ENCODER), "index.json"))


def measured(kind: str, recall: float, p99_ms: float) -> list[Measurement]:
    """By both kinds of query; words find less, and take longer."""
    of_both: dict[str, Any] = {"index": "image", "kind": kind, "parameters": {}, "num_rows": 2000}
    return [
        Measurement(queries="text", recall_at_10=recall, p99_ms=p99_ms, **of_both),
        Measurement(queries="image", recall_at_10=recall + 0.02, p99_ms=p99_ms / 2, **of_both),
    ]


@pytest.mark.parametrize(
    ("p99_ms", "tried", "kinds", "asked", "allowed"),
    [
        (None, [*measured("A", 0.91, 3), *measured("B", 0.85, 1)], [], "", "--recall 0.91"),
        (
            5,
            [
                *measured("slow", 0.97, 20),
                *measured("slower", 0.96, 30),
                *measured("quick", 0.8, 4),
            ],
            [],
            " and p99 5 ms",
            "--recall 0.8 or --p99 24ms",
        ),
        (None, measured("A", 0.5, 3), ["Flat"], "", "--recall 0.5 or --ram 674.7MB"),
        (
            5,
            measured("slow", 0.5, 20),
            [],
            " and p99 5 ms",
            "nothing better: leave the promise out, or give a --kind instead",
        ),
    ],
)
def test_a_refusal_says_what_was_measured_to_be_had(
    p99_ms: float | None, tried: list[Measurement], kinds: list[str], asked: str, allowed: str
) -> None:
    promise = Promise(recall=0.95, ram_bytes=300 * 10**6, p99_ms=p99_ms)
    assert str(refusal(promise, "image", tried, kinds, 1_000_000, 64)) == (
        f"recall 0.95 within 300MB{asked}: can't be promised for the image index of 1,000,000 "
        f"rows of 64; what was measured would allow {allowed}"
    )


@pytest.mark.parametrize("p99_ms", [0.001, 0.04, 0.12, 0.5, 20, 3456.7])
def test_the_p99_that_a_refusal_offers_could_have_been_kept(p99_ms: float) -> None:
    promise = Promise(recall=0.95, ram_bytes=10**9, p99_ms=0.0001)
    refused = str(refusal(promise, "image", measured("A", 0.97, p99_ms), [], 1000, 64))
    offered = promise_of(0.95, "1GB", refused.rsplit("--p99 ", 1)[1])
    assert offered is not None
    assert offered.p99_ms is not None
    assert 1.1 * p99_ms <= offered.p99_ms <= 1.4 * p99_ms


def test_kinds_that_keep_the_promise_come_quickest_first() -> None:
    """By the slower of both kinds of query."""

    def at(kind: str, recall: float, words_ms: float, pictures_ms: float) -> list[Measurement]:
        times: dict[Any, float] = {"text": words_ms, "image": pictures_ms}
        return [
            one.model_copy(update={"p50_ms": times[one.queries]})
            for one in measured(kind, recall, 9.0)
        ]

    frontier = [
        *at("A", 0.97, 3.0, 3.0),
        *at("B", 0.96, 1.0, 1.0),
        *at("quick but poor", 0.90, 0.1, 0.1),
        *at("C", 0.96, 5.0, 0.1),
    ]
    promise = Promise(recall=0.95, ram_bytes=10**9)
    assert choice._quickest_first(frontier, promise, 2000) == ["B", "A", "C"]
    assert choice._quickest_first(frontier, promise.model_copy(update={"p99_ms": 8.0}), 2000) == []


@pytest.mark.usefixtures("large_from_1000")
def test_a_kind_that_is_quick_on_the_sample_alone_gives_way_to_the_next(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock's place is taken, so that it is known which kind is quick, and where."""
    quickest = (faiss.IndexIVFScalarQuantizer, 1.0)
    next_best = (faiss.IndexRefine, 2.0)

    def milliseconds(_exam: Exam, index: faiss.Index, _: Parameters) -> tuple[float, float]:
        index = faiss.downcast_index(index)
        p50 = next((ms for kind, ms in (quickest, next_best) if isinstance(index, kind)), 5.0)
        is_slow = isinstance(index, quickest[0]) and index.ntotal == VECTORS.num_rows
        return p50, 1000.0 if is_slow else 2 * p50

    monkeypatch.setattr(Exam, "milliseconds", milliseconds)
    monkeypatch.setattr(choice, "COMPARED_ROWS", VECTORS.num_rows // 2)
    run(corpus, recall=0.8, ram="1GB", p99="50ms")
    manifest = manifest_of(corpus)
    assert all("Refine" in kind for kind in manifest.kind.split(" + "))
    on_all_rows = [one for one in manifest.frontier if one.num_rows == VECTORS.num_rows]
    assert on_all_rows
    assert {(one.kind.partition(",")[2], one.p99_ms) for one in on_all_rows} == {("SQ8", 1000.0)}


def test_a_promise_beside_a_kind_is_refused_and_nothing_is_written(corpus: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(corpus, kind="HNSW32", recall=0.95, ram="1GB")
    assert str(refused.value) == (
        "kind 'HNSW32' with recall 0.95: a promise chooses the kind itself; leave one of them out"
    )
    assert not Path(index_url(corpus, ENCODER)).exists()


def test_a_kind_may_be_told_and_its_parameters_still_reach_the_recall(corpus: str) -> None:
    run(corpus, kind="IVF16,SQ8")
    for by_queries in manifest_of(corpus).measured.values():
        for one in by_queries.values():
            assert one.recall_at_10 >= choice.DEFAULT_RECALL
            assert 0 < one.parameters["nprobe"] <= 16


@pytest.mark.parametrize("kind", ["IVF64,SQ8", "IVF64,PQ8x4fs,Refine(SQfp16)"])
def test_what_is_asked_with_is_what_was_measured(corpus: str, kind: str) -> None:
    """Words and pictures each with their own setting; what is neither with one of the two."""
    run(corpus, kind=kind)
    manifest = manifest_of(corpus)
    measured = manifest.measured["image"]
    settings = {asked_by: one.parameters for asked_by, one in measured.items()}
    assert settings["image"] != settings["text"]
    folder = index_url(corpus, ENCODER)
    stored = faiss.read_index(storage.join(folder, "image.index"))
    state = Retriever.open(corpus).state
    queries = VECTORS.part(1)[1].astype(np.float32)
    found = {}
    for asked_by, parameters in settings.items():
        found[asked_by] = state.neighbours(queries, 10, "image", asked_by=asked_by)[1]
        expected = search_among(stored, queries, 10, None, parameters)[1]
        np.testing.assert_array_equal(found[asked_by], expected)
    assert (found["image"] != found["text"]).any()
    either = state.neighbours(queries, 10, "image")[1]
    assert any((either == rows).all() for rows in found.values())


def test_a_search_of_both_kinds_is_measured_where_it_is_neither_one_s() -> None:
    """Here pictures lie close together in few lists, and what words look for lies apart."""
    rng, (num_rows, dim) = np.random.default_rng(0), (2000, 256)
    pictures = rng.normal(size=(num_rows, dim))
    alike = np.union1d(knn.evenly_spaced(num_rows, 100), np.arange(0, num_rows, 2))
    centres = rng.normal(size=(2, dim))
    noise = 0.3 * rng.normal(size=(len(alike), dim))
    pictures[alike] = centres[rng.integers(0, 2, len(alike))] + noise
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    apart = np.setdiff1d(np.arange(num_rows), alike)
    captions = np.stack(
        [pictures[rng.choice(apart, 10, replace=False)].sum(axis=0) for _ in range(num_rows)]
    )
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    streams: dict[Modality, np.ndarray] = {"image": pictures, "text": captions}
    corpus = choice.Corpus.of(
        {name: knn.Sample(rows.astype(np.float32)) for name, rows in streams.items()}, 100
    )
    kind = "IVF16,PQ64x4fs,Refine(SQfp16)"
    built, _ = corpus.built("image", kind, 1 << 30, is_tracked=False)
    alone = [choice._raised(built, exam, 0.9)[0] for exam in corpus.exams["image"].values()]
    assert widest_of(alone) not in alone
    measured = choice._examined(corpus, "image", kind, built, 0.9)
    settings = [one.parameters for one in measured.values()]
    assert widest_of(settings) == widest_of(alone)
    assert widest_of(settings) in settings
    for asked_by, one in measured.items():
        _, judges = corpus.exams["image"][asked_by].halves()
        assert one.recall_at_10 == judges.recall(built, one.parameters)


MEASURED = """
import sys
from pathlib import Path
import carrara
code = carrara.run_command(sys.argv[1:])
# Not getrusage's: that begins with the peak of the process which this one was forked from.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def wide_corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """41 MB of float32 vectors of each modality."""
    folder = tmp_path_factory.mktemp("wide")
    vectors = ClipLike(num_rows=40_000, rows_a_part=4000, dim=256)
    write_corpus(folder, (vectors.part(number) for number in range(vectors.num_parts)))
    return str(folder)


def peak_bytes(root: str, *settings: str) -> int:
    """Of a process that indexes it."""
    command = ["index", root, *settings, "--num-queries", "40", "--overwrite", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


def test_choosing_and_building_stay_within_the_ram(wide_corpus: str) -> None:
    """Too little for Flat: kinds are compared, and one is built."""
    assert ram_needed("Flat", 40_000, 256) > 360 * 10**6
    assert peak_bytes(wide_corpus, "--recall", "0.8", "--ram", "360MB") <= 360 * 10**6
    assert manifest_of(wide_corpus).kind != "Flat"


def test_building_stays_within_the_ram(wide_corpus: str) -> None:
    """Vectors are added a part at a time."""
    kind = "IVF64,PQ64x4fs,Refine(SQ8)"
    peak = peak_bytes(wide_corpus, "--kind", kind)
    sample = 40 * 64 * 256 * 4
    part = 4000 * 256 * (2 + 2 + 4)
    assert peak < PROCESS_BYTES + kinds.build_bytes(kind, 40_000, 256) + 2 * sample + 2 * part
