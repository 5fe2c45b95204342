"""A promise is of the whole index: what earlier segments take is taken off for the next one."""

from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import pytest

from benchmarks.clip_like import ENCODER, ClipLike, write_corpus
from infra import storage
from infra.errors import ConfigError
from infra.records import read_record
from retrieval import index
from retrieval.embedding.embeddings import index_url
from retrieval.indexing import promise
from retrieval.indexing.exam import Exam
from retrieval.indexing.kinds import estimated_bytes
from retrieval.indexing.manifest import IndexManifest, Parameters

VECTORS = ClipLike(num_rows=4000, rows_a_part=1000, dim=32)
P50_MS, P99_MS = 1.0, 3.0


@pytest.fixture(autouse=True)
def small_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what few rows take is what a RAM is counted by."""
    monkeypatch.setattr(promise, "PROCESS_BYTES", 0)


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def milliseconds(_exam: Exam, _: faiss.Index, __: Parameters) -> tuple[float, float]:
        return P50_MS, P99_MS

    monkeypatch.setattr(Exam, "milliseconds", milliseconds)


def indexed(root: Path, num_parts: int, **settings: Any) -> IndexManifest:
    """With so many shards in it."""
    parts = (VECTORS.part(number) for number in range(VECTORS.num_parts))
    write_corpus(root, islice(parts, num_parts))
    index.run(index.Config(root=str(root), num_queries=60, recall=0.9, **settings))
    return read_record(storage.join(index_url(str(root), ENCODER), "index.json"), IndexManifest)


def held(manifest: IndexManifest) -> float:
    return sum(
        estimated_bytes(kind, segment.num_rows, manifest.dim)
        for segment in manifest.segments
        for kind in segment.kinds.values()
    )


def test_a_segment_gets_the_ram_that_the_others_leave(tmp_path: Path) -> None:
    ram = 450_000
    first = indexed(tmp_path, 1, ram=f"{ram}B")
    assert first.kind == "Flat"
    assert 2 * held(first) > ram  # as it is, the next one would be beyond it
    grown = indexed(tmp_path, 2, ram=f"{ram}B")
    assert len(grown.segments) == 2
    assert "Flat" not in grown.segments[1].kinds.values()
    assert held(grown) <= ram
    assert grown.promise == first.promise
    for by_queries in grown.measured.values():
        for one in by_queries.values():
            assert one.recall_at_10 >= 0.9


def test_where_the_others_leave_too_little_ram_compacting_is_offered_and_works(
    tmp_path: Path,
) -> None:
    before = indexed(tmp_path, 1, ram="300kB")
    with pytest.raises(ConfigError) as refused:
        indexed(tmp_path, 2, ram="300kB")
    assert "\n" not in str(refused.value)
    assert "1,000 rows of 32 beside the segments before, which take " in str(refused.value)
    assert str(refused.value).endswith(f" in all: give {promise.COMPACT}")
    assert indexed(tmp_path, 1, ram="300kB").files == before.files  # nothing was lost
    compact = indexed(tmp_path, 2, ram="300kB", compact=True)
    assert len(compact.segments) == 1
    assert held(compact) <= 300_000


@pytest.mark.usefixtures("steady_clock")
def test_the_time_of_all_segments_together_is_what_is_promised(tmp_path: Path) -> None:
    for num_parts in (1, 2):
        manifest = indexed(tmp_path, num_parts, ram="1GB", p99="7ms")
        assert len(manifest.segments) == num_parts
    assert manifest.promise is not None
    assert manifest.promise.p99_ms == 7.0
    assert {
        one.p99_ms for by_queries in manifest.measured.values() for one in by_queries.values()
    } == {2 * P99_MS}
    with pytest.raises(ConfigError, match=r"p99 1 ms: can't be promised .*allow --compact"):
        indexed(tmp_path, 3, ram="1GB", p99="7ms")
    assert indexed(tmp_path, 3, ram="1GB", p99="7ms", compact=True).num_rows == 3000


@pytest.mark.usefixtures("steady_clock")
def test_where_the_others_take_all_the_time_nothing_is_built(tmp_path: Path) -> None:
    indexed(tmp_path, 1, ram="1GB", p99="3ms")
    with pytest.raises(ConfigError) as refused:
        indexed(tmp_path, 2, ram="1GB", p99="3ms")
    assert str(refused.value) == (
        "p99 3 ms: the segments before take 3 ms of it together, which leaves none for another "
        f"one; give {promise.COMPACT}"
    )
