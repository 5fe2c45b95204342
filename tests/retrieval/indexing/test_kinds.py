from pathlib import Path

import faiss
import numpy as np
import pytest

from benchmarks.clip_like import ClipLike
from retrieval import knn
from retrieval.indexing.build import built_index
from retrieval.indexing.kinds import candidates, default_kind, estimated_bytes, for_rows, num_lists

NONE = np.zeros(0, np.int64)
PICTURES = knn.Sample(ClipLike(num_rows=4000, dim=64).part(0)[0].astype(np.float32))


@pytest.mark.parametrize("kind", candidates(4000, 64))
def test_the_formula_gives_the_size_that_an_index_has(tmp_path: Path, kind: str) -> None:
    index = built_index(kind, PICTURES, NONE, 1 << 30)
    faiss.write_index(index, str(tmp_path / "it.index"))
    size = (tmp_path / "it.index").stat().st_size
    assert estimated_bytes(kind, 4000, 64) == pytest.approx(size, rel=0.03)


def test_every_kind_named_in_the_guide_is_tried() -> None:
    kinds = candidates(60_000, 512)
    for word in ("Flat", "HNSW32", "SQ8", "RaBitQfs", "PQ128x4fs", "Refine(SQfp16)"):
        assert any(word in kind for kind in kinds)


def test_a_graph_is_not_tried_where_one_thread_would_take_long() -> None:
    assert not any("HNSW" in kind for kind in candidates(1_000_000, 512))


def test_a_dimension_that_product_quantization_can_not_split_has_other_kinds() -> None:
    for kind in candidates(60_000, 30):
        faiss.index_factory(30, kind, faiss.METRIC_INNER_PRODUCT)
    assert not any("PQ" in kind for kind in candidates(60_000, 30))


def test_the_number_of_lists_grows_as_the_root_of_the_rows() -> None:
    assert [num_lists(n) for n in (1, 100_000, 1_000_000, 100_000_000)] == [4, 1024, 4096, 32768]
    assert for_rows("IVF1024,SQ8", 1_000_000) == "IVF4096,SQ8"
    assert for_rows("HNSW32,SQfp16", 1_000_000) == "HNSW32,SQfp16"


def test_few_rows_are_scanned_and_many_lie_in_lists_where_nothing_is_promised() -> None:
    assert default_kind(50_000, 512) == "Flat"
    assert default_kind(1_000_000, 512) == "IVF4096,PQ128x4fs,Refine(SQfp16)"
