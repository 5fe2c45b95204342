"""Lists of hashes; all of them are made up."""

import hashlib
import sys
from pathlib import Path

import pytest

from infra.errors import ConfigError, InputError
from pipeline.takedown.blocklists import load_blocklist, match_of

MD5, SHA256, PDQ = "a" * 32, "b" * 64, "0" * 64


@pytest.fixture
def hashes(tmp_path: Path) -> str:
    place = tmp_path / "hashes.txt"
    place.write_text(f"# made up\n\n{MD5.upper()}\n{SHA256}\npdq:{PDQ}\n")
    return str(place)


def test_a_file_matches_its_hashes_of_each_kind(hashes: str) -> None:
    blocklist = load_blocklist(hashes)
    assert blocklist.matches(None, MD5, None) == "hashes.txt"
    assert blocklist.matches(SHA256, None, None) == "hashes.txt"
    assert blocklist.matches(None, None, bytes([255, 255, 255] + [0] * 29)) == "hashes.txt"
    assert blocklist.matches("c" * 64, "c" * 32, bytes([255] * 32)) is None
    assert blocklist.matches(None, None, None) is None


def test_bytes_as_stored_are_looked_up_beside_those_as_fetched(tmp_path: Path) -> None:
    place = tmp_path / "hashes.txt"
    place.write_text(hashlib.sha256(b"stored").hexdigest())
    blocklist = load_blocklist(str(place))
    assert match_of(blocklist, "c" * 64, b"stored", None) == "hashes.txt"
    assert match_of(blocklist, "c" * 64, b"other", None) is None


def test_a_class_of_ones_own_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lists.py").write_text(
        "class Mine:\n"
        "    def matches(self, sha256, md5, picture_hash):\n"
        "        return 'mine' if sha256 == 'x' else None\n"
        "class NoList:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_blocklist("my_lists:Mine").matches("x", None, None) == "mine"
    with pytest.raises(ConfigError, match="expected a class with `matches"):
        load_blocklist("my_lists:NoList")
    with pytest.raises(ConfigError, match="expected a file of hashes, or module:Class"):
        load_blocklist("my_lists:Nothing")
    sys.modules.pop("my_lists")


@pytest.mark.parametrize("line", ["abc", "sha1:" + "a" * 40, "md5:" + "b" * 64, "x" * 64])
def test_a_line_that_is_no_hash_is_named(tmp_path: Path, line: str) -> None:
    place = tmp_path / "hashes.txt"
    place.write_text(f"{SHA256}\n{line}\n")
    with pytest.raises(InputError, match=r"line 2: .*; expected md5:, sha256: or pdq:"):
        load_blocklist(str(place))
