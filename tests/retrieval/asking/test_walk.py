"""What bounds an answer: near copies without number, and diversity over many candidates."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.clip_like import write_corpus
from retrieval import index
from retrieval.asking.asker import Asker
from retrieval.asking.question import Answer, Question, Term
from retrieval.search import Retriever


@pytest.fixture(scope="module")
def asker(copies_root: str) -> Asker:
    return Asker(Retriever.open(copies_root))


def ask(asker: Asker, k: int) -> Answer:
    """Near to the picture that there are six hundred of."""
    (vector,) = asker.retriever.vectors(np.array([0]), "image")
    return asker.answer(Question(terms=[Term(embedding=vector.tolist())], k=k, dedup=True))


def nearest_of_groups(asker: Asker) -> np.ndarray:
    """The best similarity of each group to the first picture, best first."""
    state = asker.retriever.state
    vectors = state.vectors(np.arange(state.num_rows), "image")
    similarities = vectors @ vectors[0]
    best = [similarities[state.groups == group].max() for group in np.unique(state.groups)]
    return np.sort(best)[::-1]


def test_copies_beyond_number_are_counted_and_a_hundred_of_them_listed(asker: Asker) -> None:
    answer = ask(asker, 3)
    expected = nearest_of_groups(asker)[:3]
    np.testing.assert_allclose([hit.similarity for hit in answer.hits], expected, atol=0.02)
    first, groups = answer.hits[0], asker.retriever.groups
    assert answer.num_folded[first.uid] == 599
    listed = answer.folded[first.uid]
    assert 0 < len(listed) <= 100
    assert {int(groups[copy.row]) for copy in listed} == {int(groups[first.row])}
    assert first.row not in {copy.row for copy in listed}


def test_all_that_are_listed_are_bounded_too(asker: Asker) -> None:
    answer = ask(asker, 100)
    assert len(answer.hits) == 33
    assert sorted(answer.num_folded.values()) == [119] * 12 + [599]
    assert max(map(len, answer.folded.values())) == 100
    assert sum(map(len, answer.folded.values())) == 1000
    assert answer.hits[0].uid in answer.folded


def test_diversity_over_many_candidates_takes_little_memory(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((6000, 32), np.float32)
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    write_corpus(tmp_path, [(units, units)])
    index.run(index.Config(root=str(tmp_path), num_queries=5))
    asker = Asker(Retriever.open(str(tmp_path)))
    asked = Question(terms=[Term(embedding=rows[0].tolist())], k=1200, diversify=0.5)
    tracemalloc.start()
    answer = asker.answer(asked)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({hit.row for hit in answer.hits}) == 1200
    assert answer.hits[0].row == 0
    assert peak_bytes < 120_000_000  # 6000 x 6000 similarities alone were 144 MB
