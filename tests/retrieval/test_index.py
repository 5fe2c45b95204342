import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from infra import storage
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, InputError
from infra.summary import Summary
from retrieval import embed, index, knn
from retrieval.embeddings import Part, index_url
from retrieval.indexing.build import kind_for

HERE = Workers(local=True)


@pytest.fixture
def embedded_corpus(small_corpus: str, tiny_encoder: str) -> str:
    embed.run(embed.Config(root=small_corpus, encoder=tiny_encoder, workers=HERE))
    return small_corpus


def run(root: str, **settings: Any) -> Summary:
    return index.run(index.Config(root=root, **settings))


def unit_rows(num: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


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


def test_an_exact_index_has_recall_one_for_words_and_for_pictures(embedded_corpus: str) -> None:
    summary = run(embedded_corpus)
    assert summary.details["kinds"] == [{"image": "Flat", "text": "Flat"}]
    measured = summary.details["recall_at_10"]
    assert measured == {
        "image": {"image queries": 1.0, "text queries": 1.0},
        "text": {"image queries": 1.0, "text queries": 1.0},
    }


def test_layout_is_clip_retrievals_and_every_file_is_digested(
    embedded_corpus: str, tiny_encoder: str
) -> None:
    run(embedded_corpus)
    folder = Path(index_url(embedded_corpus, tiny_encoder))
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    files = {"image.index", "text.index", "groups.npy"} | {
        f"metadata/metadata_{i}.parquet" for i in (0, 1)
    }
    assert names == files | {"index.json", "stamp.json"}
    digests = json.loads((folder / "index.json").read_text())["files"]
    assert digests == {name: storage.sha256(str(folder / name)) for name in files}


def test_a_second_run_builds_nothing(embedded_corpus: str, tiny_encoder: str) -> None:
    run(embedded_corpus)
    path = Path(index_url(embedded_corpus, tiny_encoder), "image.index")
    before = path.stat().st_mtime_ns
    run(embedded_corpus)
    assert path.stat().st_mtime_ns == before


def test_another_kind_conflicts_until_told_to_overwrite(embedded_corpus: str) -> None:
    run(embedded_corpus)
    with pytest.raises(ConflictError, match="kind = None, now 'HNSW32'"):
        run(embedded_corpus, kind="HNSW32")
    assert run(embedded_corpus, kind="HNSW32", overwrite=True).details["kinds"] == [
        {"image": "HNSW32", "text": "HNSW32"}
    ]


@pytest.mark.parametrize("kind", ["no such kind", "IVF1000,Flat"])
def test_a_kind_that_can_not_be_built_is_an_error_and_leaves_the_index(
    embedded_corpus: str, tiny_encoder: str, kind: str
) -> None:
    run(embedded_corpus)
    path = Path(index_url(embedded_corpus, tiny_encoder), "image.index")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"kind '{kind}'") as raised:
        run(embedded_corpus, kind=kind, overwrite=True)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before


def test_a_kind_that_needs_more_rows_to_train_on_is_an_error(embedded_corpus: str) -> None:
    with pytest.raises(ConfigError, match=r"kind 'PQ8x8': .*training points"):
        run(embedded_corpus, kind="PQ8x8")


def test_no_embeddings_name_the_command_to_run(small_corpus: str) -> None:
    with pytest.raises(InputError, match="carrara embed"):
        run(small_corpus)


def test_the_kind_follows_the_number_of_rows() -> None:
    assert [kind_for(n) for n in (10, 50_001, 20_000_000)] == ["Flat", "HNSW32", "IVF32768,SQ8"]


def test_exact_search_over_parts_is_a_sort_of_all_similarities(tmp_path: Path) -> None:
    rows, queries = unit_rows(50, 8, 0), unit_rows(7, 8, 1)
    stream = stored_stream(tmp_path, [rows[:20], rows[20:20], rows[20:23], rows[23:]])
    similarities, ids = knn.search_exactly(stream, queries, 10)
    expected = queries @ rows.astype(np.float16).astype(np.float32).T
    np.testing.assert_array_equal(ids, np.argsort(-expected, axis=1)[:, :10])
    np.testing.assert_allclose(similarities, np.sort(expected)[:, ::-1][:, :10], atol=1e-6)


def test_recall_of_a_poor_index_is_what_counting_gives(tmp_path: Path) -> None:
    """An index that lacks every second row finds half of the neighbours."""
    rows = unit_rows(400, 16, 0)
    stream = stored_stream(tmp_path, [rows])
    poor = faiss.index_factory(16, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
    kept = np.arange(0, 400, 2)
    stored = stream.take(np.arange(400))
    poor.add_with_ids(stored[kept], kept)
    measured = knn.recall(poor, stream, unit_rows(300, 16, 1), 10)
    assert measured == pytest.approx(0.5, abs=0.04)


def test_recall_takes_copies_of_one_picture_as_equals(tmp_path: Path) -> None:
    rows = np.repeat(unit_rows(4, 16, 0), 30, axis=0)
    stream = stored_stream(tmp_path, [rows[::-1]])
    flat = knn.build_index("Flat", stream, 16)
    own = np.arange(0, 120, 7)
    assert knn.recall(flat, stream, stream.take(own), 10, own) == 1.0


def test_search_gives_k_rows_even_where_lists_are_short(tmp_path: Path) -> None:
    rows = unit_rows(256, 8, 0)
    stream = stored_stream(tmp_path, [rows])
    for kind in ("IVF64,Flat", "OPQ4_8,IVF64,Flat"):
        ivf = knn.build_index(kind, stream, 8)
        faiss.extract_index_ivf(ivf).nprobe = 1
        _, ids = knn.search(ivf, unit_rows(5, 8, 1), 200)
        assert ids.shape == (5, 200)
        assert (ids >= 0).all()
