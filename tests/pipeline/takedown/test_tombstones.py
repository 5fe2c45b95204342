import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.takedown.tombstones import (
    TAKEN_DOWN,
    Kind,
    Tombstone,
    Tombstones,
    add_tombstones,
    domain_digest,
    is_redacted,
    read_tombstones,
    redact_refused,
    tombstones_url,
    url_digest,
)


def stone(
    kind: Kind, value: str, max_distance: int | None = None, time: str = "2026-01-01"
) -> Tombstone:
    return Tombstone(kind, value, max_distance, time, "receipt.json")


def test_a_corpus_without_tombstones_refuses_nothing(tmp_path: Path) -> None:
    tombstones = read_tombstones(str(tmp_path))
    assert len(tombstones) == 0
    assert tombstones.reason(uid="0" * 32, url="https://example.org/", sha256="0" * 64) is None
    assert tombstones.of_picture(bytes(32)) is None
    assert not tombstones.has_pictures


def test_a_row_is_refused_by_its_uid_url_or_bytes() -> None:
    tombstones = Tombstones(
        [stone("uid", "a" * 32), stone("sha256", "b" * 64), stone("url", url_digest("http://x/1"))]
    )
    assert tombstones.reason(uid="a" * 32, url="http://x/2") == TAKEN_DOWN
    assert tombstones.reason(sha256="b" * 64) == TAKEN_DOWN
    assert tombstones.reason(uid="c" * 32, url="http://x/1") == TAKEN_DOWN
    assert tombstones.reason(uid="c" * 32, url="http://x/2", sha256="c" * 64) is None
    assert tombstones.reason(uid=None, url=None, sha256=None) is None


@pytest.mark.parametrize(
    "same",
    [
        "https://Example.ORG/a%7Eb/ü.jpg?q=1",
        "http://example.org/a~b/%c3%bc.jpg?q=1",
        "http://example.org:80/a~b/ü.jpg?q=1#part",
        " http://example.org./a~b/%C3%BC.jpg?q=1",
    ],
)
def test_an_address_is_the_same_however_it_is_spelled(same: str) -> None:
    assert url_digest(same) == url_digest("http://example.org/a~b/%C3%BC.jpg?q=1")


@pytest.mark.parametrize(
    "other",
    [
        "http://example.org/a~b/%C3%BC.jpg?q=2",
        "http://example.org/A~b/%C3%BC.jpg?q=1",
        "http://example.org:8080/a~b/%C3%BC.jpg?q=1",
        "http://www.example.org/a~b/%C3%BC.jpg?q=1",
        "http://example.org/a~b%2F%C3%BC.jpg?q=1",
    ],
)
def test_another_address_stays_another(other: str) -> None:
    assert url_digest(other) != url_digest("http://example.org/a~b/%C3%BC.jpg?q=1")


def test_a_domain_covers_its_subdomains_and_no_lookalikes() -> None:
    tombstones = Tombstones(
        [
            stone("domain", domain_digest("Example.org.")),
            stone("domain", domain_digest("bücher.de")),
        ]
    )
    for url in (
        "https://example.org/1.jpg",
        "http://cdn.EXAMPLE.org:8080/1.jpg",
        "https://user@a.b.example.org",
        "https://xn--bcher-kva.de/",
        "https://www.bücher.de/",
    ):
        assert tombstones.reason(url=url) == TAKEN_DOWN, url
    for url in (
        "https://notexample.org/1.jpg",
        "https://example.org.evil.com/",
        "https://evil.com/?example.org",
        "https://org/",
        "https://[::1/",
        "no address",
        "",
    ):
        assert tombstones.reason(url=url) is None, url


def test_near_copies_are_refused_up_to_their_distance() -> None:
    tombstones = Tombstones([stone("picture", bytes(32).hex(), max_distance=3)])
    assert tombstones.has_pictures
    assert tombstones.of_picture(bytes([0b111] + [0] * 31)) == TAKEN_DOWN
    assert tombstones.of_picture(bytes([0b1111] + [0] * 31)) is None


def test_tombstones_are_added_once_and_keep_their_first_time(tmp_path: Path) -> None:
    root = str(tmp_path)
    add_tombstones(root, [stone("uid", "a" * 32, time="2026-01-01")])
    written = Path(tombstones_url(root)).stat().st_mtime_ns
    again = add_tombstones(root, [stone("uid", "a" * 32, time="2026-02-02")])
    assert Path(tombstones_url(root)).stat().st_mtime_ns == written
    assert [one.time for one in again.stones] == ["2026-01-01"]
    both = add_tombstones(root, [stone("picture", "0" * 64, 31, "2026-03-03")])
    assert read_tombstones(root).stones == both.stones
    assert len(both) == 2


def test_the_digest_is_of_what_was_taken_down_not_of_when_or_in_which_order() -> None:
    one, other = stone("uid", "a" * 32), stone("sha256", "b" * 64)
    later = stone("uid", "a" * 32, time="2027-01-01")
    assert Tombstones([one, other]).digest == Tombstones([other, later]).digest
    assert Tombstones([one]).digest != Tombstones([other]).digest


def test_tombstones_travel_to_workers() -> None:
    tombstones = pickle.loads(pickle.dumps(Tombstones([stone("uid", "a" * 32)])))
    assert tombstones.reason(uid="a" * 32) == TAKEN_DOWN


def test_no_url_is_told(tmp_path: Path) -> None:
    url = "https://example.org/private/person.jpg"
    add_tombstones(
        str(tmp_path),
        [stone("url", url_digest(url)), stone("domain", domain_digest("example.org"))],
    )
    table = read_tombstones(str(tmp_path)).stones
    assert "example" not in repr(table)
    assert b"example" not in Path(tombstones_url(str(tmp_path))).read_bytes()


def test_a_refused_row_keeps_nothing_but_its_place_and_uid() -> None:
    rows = pa.table(
        {
            "key": ["0", "1"],
            "uid": ["a", "b"],
            "url": ["u", "v"],
            "caption": ["c", "d"],
            "status": ["success", "failed_to_download"],
            "error_message": pa.array([None, TAKEN_DOWN], pa.string()),
            "page_year": [2020, 2021],
        }
    )
    kept, refused = redact_refused(rows).to_pylist()
    assert kept == rows.to_pylist()[0]
    assert refused == dict.fromkeys(rows.column_names) | {
        "key": "1",
        "uid": "b",
        "status": "failed_to_download",
        "error_message": TAKEN_DOWN,
    }
    assert is_redacted(refused)
    assert not is_redacted(kept)


@given(st.text(), st.sampled_from(["", "http://", "https://x/", "//", "http://["]))
def test_any_text_can_be_asked_about(text: str, before: str) -> None:
    tombstones = Tombstones(
        [stone("url", url_digest("http://a/")), stone("domain", domain_digest("a"))]
    )
    tombstones.reason(url=before + text)


@given(st.text())
def test_http_and_https_are_one(text: str) -> None:
    assert url_digest(f"http://example.org/{text}") == url_digest(f"https://example.org/{text}")


def test_half_a_surrogate_pair_is_an_address_like_another() -> None:
    assert url_digest("http://a/\ud800") != url_digest("http://a/\ud801")
