from pathlib import Path

import faiss
import numpy as np
import pytest

from infra import storage
from retrieval import knn
from retrieval.embedding.embeddings import Part
from retrieval.indexing.exam import Exam, exams_of
from retrieval.indexing.tuning import tuned


def unit_rows(num: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def exam_of(images: np.ndarray, texts: np.ndarray, num_queries: int) -> Exam:
    """Of the index of pictures, by pictures: own rows are in it."""
    exams, _ = exams_of({"image": knn.Sample(images), "text": knn.Sample(texts)}, num_queries)
    return exams["image"]["image"]


def test_exact_search_over_parts_is_a_sort_of_all_similarities(tmp_path: Path) -> None:
    rows, queries = unit_rows(50, 8, 0), unit_rows(7, 8, 1)
    stream = stored_stream(tmp_path, [rows[:20], rows[20:20], rows[20:23], rows[23:]])
    similarities, ids = knn.search_exactly(stream, queries, 10)
    expected = queries @ rows.astype(np.float16).astype(np.float32).T
    np.testing.assert_array_equal(ids, np.argsort(-expected, axis=1)[:, :10])
    np.testing.assert_allclose(similarities, np.sort(expected)[:, ::-1][:, :10], atol=1e-6)
    chosen = np.array([0, 19, 20, 22, 23, 49])
    np.testing.assert_array_equal(stream.take(chosen), rows[chosen].astype(np.float16))


def stored_stream(folder: Path, arrays: list[np.ndarray]) -> knn.VectorStream:
    (folder / "img_emb").mkdir(parents=True)
    parts = []
    for i, rows in enumerate(arrays):
        name = f"img_emb/img_emb_{i}.npy"
        np.save(folder / name, rows.astype(np.float16))
        part = Part(
            shard=f"{i:05d}",
            file_number=str(i),
            num_rows=len(rows),
            num_undecodable=0,
            dim=rows.shape[1],
            files={name: storage.sha256(str(folder / name))},
        )
        parts.append(part)
    return knn.VectorStream(str(folder), parts, "image")


def test_recall_of_a_poor_index_is_what_counting_gives() -> None:
    """An index that lacks every second row finds half of the neighbours."""
    rows, texts = unit_rows(400, 16, 0), unit_rows(400, 16, 1)
    poor = faiss.index_factory(16, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
    kept = np.arange(0, 400, 2)
    poor.add_with_ids(rows[kept], kept)
    exams, _ = exams_of({"image": knn.Sample(rows), "text": knn.Sample(texts)}, 300)
    assert exams["image"]["text"].recall(poor, {}) == pytest.approx(0.5, abs=0.04)


def test_recall_takes_copies_of_one_picture_as_equals() -> None:
    rows = np.repeat(unit_rows(4, 16, 0), 30, axis=0)[::-1].copy()
    flat = faiss.IndexFlatIP(16)
    flat.add(rows)
    assert exam_of(rows, rows, 20).recall(flat, {}) == 1.0


def test_a_query_s_own_row_is_neither_found_nor_missed() -> None:
    """Without it in the index nothing is missing; with nothing but it nothing is found."""
    rows = unit_rows(100, 16, 0)
    exam = exam_of(rows, rows, 10)
    _, ids = knn.search_exactly(knn.Sample(rows), exam.queries, 11)
    assert (ids[:, 0] == exam.own).all()
    assert exam.shares(ids).mean() == 1.0
    assert exam.shares(ids[:, 1:]).mean() == 1.0
    assert exam.shares(ids[:, :1]).mean() == 0.0
    assert exam.shares(ids[:, :6]).mean() == 0.5


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_a_corpus_of_fewer_rows_than_are_asked_for_is_found_whole(num_rows: int) -> None:
    rows = unit_rows(num_rows, 16, 0)
    flat = faiss.IndexFlatIP(16)
    flat.add(rows)
    assert exam_of(rows, rows, 10).recall(flat, {}) == 1.0


def test_the_cheapest_setting_that_reaches_the_recall_is_taken() -> None:
    rows = unit_rows(2000, 16, 0)
    exam = exam_of(rows, rows, 50)
    index = faiss.index_factory(16, "IVF32,PQ8x4fs,Refine(SQfp16)", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    parameters, reached = tuned(index, exam, 0.8)
    assert reached >= 0.8
    fewer = parameters | {"nprobe": parameters["nprobe"] // 2}
    assert exam.recall(index, fewer) < 0.8
    assert tuned(index, exam, 0.8) == (parameters, reached)
    # More than it can: the widest search there is.
    assert tuned(index, exam, 1.01)[0] == {"k_factor": 64, "nprobe": 32}
