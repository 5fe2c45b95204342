"""What is taken down is not answered with, from the moment that its tombstone stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.cluster import Workers
from infra.errors import ShortfallError
from pipeline import forget
from pipeline.corpus import shard_url, write_columns
from pipeline.takedown.tombstones import (
    Kind,
    Tombstone,
    Tombstones,
    add_tombstones,
    domain_digest,
    tombstones_url,
    url_digest,
)
from retrieval import index
from retrieval.live.addresses import Addresses
from retrieval.search import Retriever


@pytest.fixture
def corpus(tmp_path: Path, make_embedded: Callable[..., Any]) -> Any:
    made = make_embedded(tmp_path / "corpus", 30, 20)
    index.run(index.Config(root=made.root, num_queries=5))
    return made


def put_up(root: str, kind: Kind, value: str, max_distance: int | None = None) -> None:
    add_tombstones(root, [Tombstone(kind, value, max_distance, "", "")])


def answered(retriever: Retriever) -> set[int]:
    """Rows that come back when all are asked for."""
    _, rows = retriever.neighbours(np.ones((1, 16), np.float32), 50, "image")
    return set(rows[rows >= 0].tolist())


def test_by_uid_address_domain_and_digest(corpus: Any) -> None:
    retriever = Retriever.open(corpus.root)
    row = retriever.hits(np.array([11]), np.ones(1))[0]
    put_up(corpus.root, "uid", corpus.uids[3])
    assert retriever.refresh()
    assert answered(retriever) == set(range(50)) - {3}
    put_up(corpus.root, "url", url_digest("http://1.example.org:80/000000007.jpg#part"))
    put_up(corpus.root, "sha256", str(row.metadata["sha256"]))
    assert retriever.refresh()
    assert answered(retriever) == set(range(50)) - {3, 7, 11}
    put_up(corpus.root, "domain", domain_digest("2.example.org"))
    assert retriever.refresh()
    gone = {3, 7, 11, *range(2, 30, 3), *range(32, 50, 3)}
    assert answered(retriever) == set(range(50)) - gone
    assert set(np.flatnonzero(retriever.removed).tolist()) == gone
    assert not retriever.refresh()


def test_near_copies_by_their_perceptual_hash(corpus: Any) -> None:
    base = np.random.default_rng(0).integers(0, 256, 32, np.uint8)
    hashes = []
    for row in range(50):
        bits = np.unpackbits(base)
        bits[: 5 * row] ^= 1  # 0, 5, 10, ... bits apart
        hashes.append(np.packbits(bits).tobytes().hex() if row != 2 else None)
    for name, rows in (("00000", slice(0, 30)), ("00001", slice(30, 50))):
        # In another order than the index has, and without the last.
        uids, values = corpus.uids[rows][-2::-1], hashes[rows][-2::-1]
        write_columns(corpus.root, "hashes", name, pa.table({"uid": uids, "picture_hash": values}))
    put_up(corpus.root, "picture", base.tobytes().hex(), 31)
    assert np.flatnonzero(Retriever.open(corpus.root).removed).tolist() == [0, 1, 3, 4, 5, 6]


def test_a_removed_row_is_not_found_by_its_uid(corpus: Any) -> None:
    retriever = Retriever.open(corpus.root)
    assert retriever.row_of(corpus.uids[44]) == 44
    put_up(corpus.root, "uid", corpus.uids[44])
    retriever.refresh()
    assert retriever.row_of(corpus.uids[44]) is None
    assert retriever.row_of("0" * 32) is None


def test_it_is_live_before_forget_has_rewritten_anything(corpus: Any) -> None:
    retriever = Retriever.open(corpus.root)
    Path(shard_url(corpus.root, "00001")).unlink()
    with pytest.raises(ShortfallError, match="00001"):
        forget.run(
            forget.Config(root=corpus.root, uid=(corpus.uids[40],), workers=Workers(local=True))
        )
    assert retriever.refresh()
    assert answered(retriever) == set(range(50)) - {40}


def test_what_is_taken_back_is_answered_with_again(corpus: Any) -> None:
    put_up(corpus.root, "uid", corpus.uids[0])
    retriever = Retriever.open(corpus.root)
    assert retriever.removed[0]
    Path(tombstones_url(corpus.root)).unlink()
    assert retriever.refresh()
    assert not retriever.removed.any()


ODD = ["", "http://", "no address", "http://[::1]:80/a", "http://[", "HTTP://A.example/B", None]
ODD += [
    "http://a.example.",
    "http://a.example/%7Ea",
    "http://a.example/%c3%A9",
    " http://a.example/",
]
ODD += [
    "http://u:p@a.example/b",
    "http://bücher.example/é",
    "ftp://a.example/b",
    "http://a.example?x",
]
ODD += [
    "http://a.example/a?",
    "http://a.example/a#b",
    "http://a.example:8080/a",
    "http://a.example",
]


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(
        st.sampled_from(ODD)
        | st.from_regex(r"https?://[a-zA-Z.-]{1,6}(:[0-9]{1,3})?[/?#][ -~]{0,9}", fullmatch=True),
        min_size=1,
        max_size=8,
    ),
    refused=st.from_regex(r"https?://[a-z.]{1,6}/[ -~]{0,5}", fullmatch=True),
)
def test_addresses_are_judged_as_one_by_one(texts: list[str | None], refused: str) -> None:
    """The quick way over all rows against Tombstones' own."""
    stones = [
        Tombstone("url", url_digest(url), None, "", "") for url in [*texts[::2], refused] if url
    ]
    stones.append(Tombstone("domain", domain_digest("example"), None, "", ""))
    tombstones = Tombstones(stones)
    rows = Addresses(lambda: pa.chunked_array([pa.array(texts, pa.string())])).rows(tombstones)
    expected = [i for i, url in enumerate(texts) if tombstones.matched_by(url=url)]
    assert sorted(set(rows.tolist())) == expected
