"""What `carrara query` tells at a terminal: what was folded, hidden and looked among; previews."""

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.made_corpus import write_made_signal
from infra.cluster import Workers
from infra.summary import Summary, print_summary
from pipeline import score
from pipeline.corpus import Manifest, iter_samples, read_columns, write_columns
from retrieval import embed, index, query
from retrieval.asking import shown

HERE = Workers(local=True)
FOREIGN = {
    3: "ein lachendes gelbes Gesicht mit geschlossenen Augen",
    7: "un visage jaune qui pleure de joie devant la maison",
}
"""Captions, by the number of the picture."""


def run(root: str, text: str, **settings: Any) -> Summary:
    return query.run(query.Config(root=root, text=text, **settings))


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
) -> str:
    """Twelve emoji, four of them not safe, two with foreign captions; `caption` is scored."""
    root = str(tmp_path_factory.mktemp("query") / "corpus")
    (shard,) = make_corpus(root, num_shards=1, captions=FOREIGN).shards
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    index.run(index.Config(root=root))
    uids = [sample.uid for sample in iter_samples(root, shard)]
    nudity = pa.array([0.1 if number % 3 else 0.9 for number in range(len(uids))], pa.float32())
    write_columns(root, "safety", shard.name, pa.table({"uid": uids, "nudity_exposed": nudity}))
    write_made_signal(root, "safety")
    score.run(score.Config(root=root, signals=("caption",), workers=HERE))
    return root


def test_the_printed_line_says_what_was_folded_and_why_the_rest_is_hidden(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(run(root, "a face", dedup=True), as_json=False)
    # The encoder is untrained: to it all pictures are near copies of one.
    assert re.search(r"query: 12 samples in, 1 out in .* \(11 folded\)", capsys.readouterr().out)
    print_summary(run(root, "a face", safe=True), as_json=False)
    told = capsys.readouterr()
    assert "8 out" in told.out
    assert "query: safe mode: 8 of 12 samples are known to be safe" in told.err
    assert "query: 8 of the 10 asked for: there are no more" in told.err


def test_hits_are_drawn_where_the_terminal_can(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "detect_previews", lambda: "blocks")
    summary = run(root, "a face", k=2)
    assert summary.draw is not None
    drawn = summary.draw()
    assert drawn is not None
    assert drawn.count("\N{UPPER HALF BLOCK}") == 2 * 5 * 10  # two pictures of so many cells
    for row in summary.table:
        assert str(row["uid"]) in drawn
    assert run(root, "a face", k=2, previews=False).draw is None


def test_where_takes_scored_columns(root: str) -> None:
    scored = read_columns(root, "caption").to_pylist()
    english = {row["uid"] for row in scored if row["language"] == "en"}
    assert 0 < len(english) < 12
    table = run(root, "a face", k=12, where="width >= 64 and language = 'en'").table
    assert {row["uid"] for row in table} == english
