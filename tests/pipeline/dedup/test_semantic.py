from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dedup import semantic
from pipeline.dedup.embeddings import Vectors, unit
from pipeline.dedup.semantic import Cells

EPS = 0.05


def corpus(
    num: int = 600, num_copies: int = 200, dim: int = 16, noise: float = 0.1
) -> NDArray[np.float16]:
    """Random directions, the first so many again, at the end: with that noise at a cosine of 0.99,
    with 0.3 on both sides of 0.95."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((num, dim)).astype(np.float32)
    copies = rows[:num_copies] + noise * rng.standard_normal((num_copies, dim))
    both = np.concatenate([rows, copies])
    scaled: NDArray[np.float16] = (both / np.linalg.norm(both, axis=1, keepdims=True)).astype("f2")
    return scaled


def vectors(rows: NDArray[np.float16]) -> Vectors:
    return Vectors(rows, np.arange(len(rows)))


def pairs(cells: Cells, eps: float = EPS) -> set[tuple[int, int]]:
    return {
        (min(pair), max(pair))
        for i, j in cells.near_pairs(eps)
        for pair in zip(i.tolist(), j.tolist(), strict=True)
    }


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "ROWS_A_CELL", 100)


def test_one_cell_finds_all_pairs_above_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "NUMBERS_AT_ONCE", 10_000)  # blocks of 12 rows
    rows = corpus(noise=0.3)
    cells = Cells(vectors(rows))
    exact = unit(rows)
    expected = np.argwhere(np.triu(exact @ exact.T >= 1 - EPS, 1))
    assert cells.num == 1
    assert pairs(cells) == set(map(tuple, expected.tolist()))
    assert 50 < len(expected) < 190


@pytest.mark.usefixtures("small_cells")
def test_cells_lose_little() -> None:
    cells = Cells(vectors(corpus()))
    assert cells.num == 8
    found = pairs(cells)
    assert sum((i, 600 + i) in found for i in range(200)) >= 170


@pytest.mark.usefixtures("small_cells")
def test_cells_do_not_depend_on_the_number_of_threads() -> None:
    import faiss

    found: list[Any] = []
    num_threads = faiss.omp_get_max_threads()
    for num in (1, 2):
        faiss.omp_set_num_threads(num)
        found.append(pairs(Cells(vectors(corpus()))))
    faiss.omp_set_num_threads(num_threads)
    assert found[0] == found[1]


@pytest.mark.usefixtures("small_cells")
def test_queries_find_their_copies() -> None:
    rows = corpus()
    cells = Cells(vectors(rows[:600]))
    found = set(cells.near(unit(rows[600:]), EPS).tolist())
    assert len(found & set(range(200))) >= 190
    assert not cells.near(unit(rows[600:][:0]), EPS).size


def test_pictures_without_an_embedding_are_no_copies() -> None:
    rows = corpus(3, 1)
    some = Vectors(rows, np.array([0, -1, 1, 2, 3]))
    assert some.pictures.tolist() == [0, 2, 3, 4]
    cosines = some.cosines(np.array([0, 0, 1]), np.array([4, 1, 1]))
    assert cosines[0] > 0.9
    assert cosines[1:].tolist() == [-1, -1]
    assert pairs(Cells(some)) == {(0, 4)}


def test_no_embeddings_have_no_pairs() -> None:
    nothing = Vectors(np.zeros((0, 16), np.float16), np.full(4, -1))
    assert not pairs(Cells(nothing))
    assert not Cells(nothing).near(np.ones((1, 16), np.float32), EPS).size
