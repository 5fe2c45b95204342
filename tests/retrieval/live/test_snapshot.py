"""Segments that answer as one, against brute force over the stored vectors."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.cluster import Workers
from infra.errors import DamagedError, InputError
from pipeline import forget
from pipeline.takedown.tombstones import Tombstone, add_tombstones
from retrieval import index
from retrieval.live import exact
from retrieval.search import Retriever

NUM_ROWS = (150, 110, 40)
KINDS = ["Flat", "HNSW16", "IVF4,SQ8", "IVF4,RaBitQ4", "IVF4,RaBitQfs,Refine(SQ8)"]
KINDS += ["IVF4,PQ8x4fs,RFlat", "PCA8,IVF4,SQ8", "PQ8x4fs"]


@pytest.fixture(scope="module", params=KINDS)
def segmented(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_embedded: Callable[..., Any],
) -> tuple[Any, Retriever]:
    """An index of one kind in three segments, 15 of its rows taken down."""
    corpus = make_embedded(tmp_path_factory.mktemp("segmented") / "corpus")
    for num in NUM_ROWS:
        corpus.grow(num)
        index.run(index.Config(root=corpus.root, kind=request.param, num_queries=5))
    gone = corpus.uids[::20]
    add_tombstones(corpus.root, [Tombstone("uid", uid, None, "", "") for uid in gone])
    retriever = Retriever.open(corpus.root)
    assert len(retriever.manifest.segments) == len(NUM_ROWS)
    assert np.flatnonzero(retriever.removed).tolist() == list(range(0, 300, 20))
    return corpus, retriever


def masks() -> st.SearchStrategy[np.ndarray | None]:
    """None, or which rows are allowed: none, few, many or all."""

    def mask(seed: int, share: float) -> np.ndarray:
        chosen: np.ndarray = np.random.default_rng(seed).random(sum(NUM_ROWS)) < share
        return chosen

    shares = st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.95, 1.0])
    return st.none() | st.builds(mask, st.integers(0, 1000), shares)


@pytest.mark.parametrize("max_exact", [0, exact.MAX_ROWS])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(allowed=masks(), k=st.integers(1, 350), seed=st.integers(0, 50))
def test_exactly_k_of_the_rows_that_may_be_shown(
    segmented: tuple[Any, Retriever],
    max_exact: int,
    allowed: np.ndarray | None,
    k: int,
    seed: int,
) -> None:
    """By the index's selectors (0) and by exact scan."""
    corpus, retriever = segmented
    retriever.state.max_exact = dict.fromkeys(retriever.state.max_exact, max_exact)
    queries = corpus.image[[seed, 299 - seed]].astype(np.float32)
    similarities, rows = retriever.neighbours(queries, k, "image", allowed)
    may = ~retriever.removed if allowed is None else allowed & ~retriever.removed
    num = min(k, int(may.sum()))
    assert similarities.shape == rows.shape == (2, min(k, 300))
    assert (rows[:, num:] == -1).all()
    is_flat = retriever.manifest.segments[0].kinds["image"] == "Flat"
    is_exact = is_flat or (allowed is not None and max_exact > 0)
    for query, found, near in zip(queries, rows[:, :num], similarities[:, :num], strict=True):
        assert may[found].all()
        assert len(set(found.tolist())) == num
        assert (np.diff(near) <= 0).all()
        if is_exact:
            true = np.sort((corpus.image.astype(np.float32) @ query)[may])[::-1][:num]
            assert near == pytest.approx(true, abs=2e-6)


MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not tell what is mapped")
@pytest.mark.parametrize("kind", ["Flat", "HNSW16"])
def test_an_index_is_mapped_and_not_read(
    kind: str, tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 500)
    index.run(index.Config(root=corpus.root, kind=kind, num_queries=5))
    retriever = Retriever.open(corpus.root)
    assert retriever.search(corpus.image[:1].astype(np.float32), 5)
    mapped = [line for line in MAPS.read_text().splitlines() if corpus.root in line]
    assert any(line.endswith("image.index") for line in mapped), mapped


def test_the_larger_a_graph_the_more_allowed_rows_are_compared_with() -> None:
    assert exact.max_rows(10**5, is_graph=True) == exact.MAX_ROWS
    assert exact.max_rows(10**7, is_graph=True) == pytest.approx(179_000, rel=0.01)
    assert exact.max_rows(10**7, is_graph=False) == exact.MAX_ROWS


def test_an_index_on_an_object_store_answers_as_a_local_one(
    tmp_path: Path, make_embedded: Callable[..., Any], s3_bucket: str
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 50, 30)
    index.run(index.Config(root=corpus.root, num_queries=5))
    fsspec.filesystem("s3").put(corpus.root, f"{s3_bucket}/corpus", recursive=True)
    here, there = Retriever.open(corpus.root), Retriever.open(f"{s3_bucket}/corpus")
    queries = corpus.text[:3].astype(np.float32)
    allowed = here.select("width < 9")
    assert (there.select("width < 9") == allowed).all()
    for mask in (None, allowed):
        (hits, *_), (same, *_) = (one.search(queries, 7, "image", mask) for one in (here, there))
        assert hits == same
    assert here.read_images(hits) == there.read_images(hits)
    rows = np.array([79, 3, 4, 48, 3, 51])
    assert (there.vectors(rows, "text") == here.vectors(rows, "text")).all()
    add_tombstones(there.root, [Tombstone("uid", hits[0].uid, None, "", "")])
    assert there.refresh()
    assert there.search(queries, 7, "image", allowed)[0][0].uid == hits[1].uid


def test_a_picture_is_found_between_a_takedowns_tar_and_its_parquet(
    tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 30)
    index.run(index.Config(root=corpus.root, num_queries=5))
    retriever = Retriever.open(corpus.root)
    (hits,) = retriever.search(corpus.image[[20]].astype(np.float32), 1)
    before = retriever.read_images(hits)
    parquet = tmp_path / "corpus" / "shards" / "00000.parquet"
    old = parquet.read_bytes()
    first = corpus.uids[0]
    forget.run(forget.Config(root=corpus.root, uid=(first,), workers=Workers(local=True)))
    new = parquet.read_bytes()
    parquet.write_bytes(old)
    mend = threading.Timer(0.2, parquet.write_bytes, [new])
    mend.start()
    assert retriever.read_images(hits) == before
    mend.join()
    parquet.write_bytes(old)
    with pytest.raises(DamagedError, match="does not hold"):
        retriever.read_images(hits)


def test_a_damaged_shard_takes_no_other_s_pictures_with_it_where_somebody_hears_of_it(
    tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 6, 6)
    index.run(index.Config(root=corpus.root, num_queries=5))
    state = Retriever.open(corpus.root).state
    hits = state.hits(np.arange(12), np.ones(12))
    for suffix in (".tar", ".parquet"):
        Path(corpus.root, "shards", f"00000{suffix}").unlink()
        heard: list[DamagedError] = []
        assert state.read_images(hits, heard.append).keys() == set(corpus.uids[6:])
        assert ["is missing" in str(error) for error in heard] == [True]
        with pytest.raises(DamagedError, match="is missing"):
            state.read_images(hits)


@pytest.mark.parametrize("uid", ["", "abc", "0f3c", "0" * 34, "é", "G" * 32, "0" * 32 + "\n"])
def test_what_is_no_uid_is_no_row(
    tmp_path: Path, make_embedded: Callable[..., Any], uid: str
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 6)
    index.run(index.Config(root=corpus.root, num_queries=5))
    assert Retriever.open(corpus.root).row_of(uid) is None


def test_urls_are_the_rows_in_the_order_asked(
    tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 6, 6)
    index.run(index.Config(root=corpus.root, num_queries=5))
    state = Retriever.open(corpus.root).state
    rows = np.array([11, 0, 7, 0])
    assert state.urls(rows) == [hit.url for hit in state.hits(rows, np.ones(4))]
    assert state.urls(np.zeros(0, np.int64)) == []


def test_vectors_of_other_embeddings_than_the_index_was_made_of_are_refused(
    tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 20)
    index.run(index.Config(root=corpus.root, num_queries=5))
    manifest = Path(corpus.folder, "manifest.json")
    text = manifest.read_text()
    digest = next(iter(json.loads(text)["files"].values()))
    manifest.write_text(text.replace(digest, "0" * 64))
    retriever = Retriever.open(corpus.root)
    assert len(retriever.search(corpus.image[:1].astype(np.float32), 5)[0]) == 5
    with pytest.raises(InputError, match="others than the index"):
        retriever.vectors(np.array([0]), "image")
