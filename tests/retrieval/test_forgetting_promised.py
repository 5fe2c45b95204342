"""A takedown from an index that was built with a promise, which may leave too little for it.

The clock's place is taken, so that it is known what leaves too little.
"""

import json
from collections.abc import Callable
from pathlib import Path

import faiss
import pytest

from infra.cluster import Workers
from infra.errors import CarraraError
from infra.summary import Summary
from pipeline import forget, verify
from pipeline.corpus import Manifest
from retrieval import embed, index
from retrieval.embedding.embeddings import index_url
from retrieval.indexing.exam import Exam
from retrieval.indexing.manifest import Parameters
from retrieval.search import Retriever

HERE = Workers(local=True)
PROMISE = {"recall": 0.9, "ram": "1GB", "p99": "10ms"}
IN_THE_SECOND_SEGMENT = "https://example.org/000010001.png"


class Clock:
    """Every query takes as long as it says."""

    p99_ms = 3.0

    def milliseconds(self, _: faiss.Index, __: Parameters) -> tuple[float, float]:
        return self.p99_ms / 2, self.p99_ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Exam, "milliseconds", lambda _, *arguments: clock.milliseconds(*arguments))
    return clock


@pytest.fixture
def root(
    tmp_path: Path,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
    clock: Clock,
) -> str:
    """Three segments, which take 9 of 10 milliseconds."""
    root = str(tmp_path / "corpus")
    for num_shards in (1, 2, 3):
        make_corpus(root, num_shards=num_shards, num_samples=4)
        embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
        index.run(index.Config(root=root, **PROMISE))
    assert num_rows_of(root) == [4, 4, 4]
    assert clock.p99_ms == 3.0
    return root


def num_rows_of(root: str) -> list[int]:
    return [segment.num_rows for segment in Retriever.open(root).manifest.segments]


def take_down(root: str) -> Summary:
    return forget.run(forget.Config(root=root, url=(IN_THE_SECOND_SEGMENT,), workers=HERE))


def receipt_of(summary: Summary) -> dict[str, object]:
    receipt: dict[str, object] = json.loads(Path(summary.outputs["receipt"]).read_text())
    return receipt


def test_what_remains_is_one_segment_where_the_promise_leaves_room(root: str) -> None:
    assert not take_down(root).shortfall
    assert num_rows_of(root) == [4, 7]


def test_where_it_leaves_none_beside_others_all_of_it_is_one_segment(
    root: str, clock: Clock, tiny_encoder: str
) -> None:
    clock.p99_ms = 8.0
    summary = take_down(root)
    assert not summary.shortfall
    assert receipt_of(summary)["rebuilt"] == [f"index of {tiny_encoder}"]
    assert num_rows_of(root) == [11]
    verify.run(verify.Config(root=root))


def test_a_promise_that_can_not_be_kept_any_more_holds_up_no_takedown(
    root: str, clock: Clock, tiny_encoder: str
) -> None:
    clock.p99_ms = 20.0
    summary = take_down(root)
    assert summary.num_out == 11
    assert "\n" not in summary.shortfall
    assert summary.shortfall.startswith(
        f"what was asked is gone, but not built again is the index of {tiny_encoder}: "
    )
    assert summary.shortfall.endswith(
        f"; `carrara index {root} --encoder {tiny_encoder} --overwrite` takes another promise"
    )
    receipt = receipt_of(summary)
    assert receipt["rebuilt"] == []
    assert list(receipt["not_rebuilt"]) == [f"index of {tiny_encoder}"]  # type: ignore[call-overload]
    verify.run(verify.Config(root=root))
    with pytest.raises(CarraraError):
        Retriever.open(root)
    assert not Path(root, "forget").exists()
    # Once more changes nothing, and what its line offers works.
    assert not take_down(root).shortfall
    index.run(index.Config(root=root, overwrite=True))
    assert num_rows_of(root) == [11]
    verify.run(verify.Config(root=root))
    assert Path(index_url(root, tiny_encoder), "index.json").exists()
