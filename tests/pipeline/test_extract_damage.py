"""Archives that are cut off, garbled, missing or none at all are named; the rest is read."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import carrara
from infra.errors import ShortfallError
from pipeline.extraction.extract_records import ExtractManifest
from tests.pipeline.crawled import ALL, IN_BOTH, Crawl, contents, extract, found, pairs


def spoil_cut(data: bytes) -> bytes:
    """Among the pages; most of the pictures come after them."""
    return data[: len(data) // 5]


def spoil_garble(data: bytes) -> bytes:
    place = len(data) // 5
    return data[:place] + b"garbled" + data[place + 7 :]


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_garble])
def test_a_damaged_archive_is_named_and_gives_what_comes_before(
    spoil: Any, crawl: Crawl, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    whole = crawl.warc.read_bytes()
    (folder / "a.warc.gz").write_bytes(spoil(whole))
    (folder / "b.wat.gz").write_bytes(crawl.wat.read_bytes())
    with pytest.raises(ShortfallError, match=r"1 of 2 archives .*a\.warc\.gz: (cut off|garbled)"):
        extract(out, folder)
    sources = pairs(out)["archive"].to_pylist()
    assert 3 <= sources.count("a.warc.gz") < len(ALL)
    assert found(out, crawl) >= IN_BOTH  # the WAT told of the rest
    # The same again: named again. Mended: as if it had never been.
    with pytest.raises(ShortfallError, match=r"a\.warc\.gz"):
        extract(out, folder)
    (folder / "a.warc.gz").write_bytes(whole)
    extract(out, folder)
    extract(tmp_path / "fresh", folder)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an archive"), (b"\0\1\2 garbage" * 999, "not an archive"), (None, "missing")],
)
def test_what_is_no_archive_is_named(
    content: bytes | None,
    reason: str,
    crawl: Crawl,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "bad.warc.gz").write_bytes(content)
    shutil.copy(crawl.warc, tmp_path / "good.warc.gz")
    (tmp_path / "warc.paths").write_text("bad.warc.gz\ngood.warc.gz\n")
    out = tmp_path / "out"
    argv = ["extract", str(tmp_path / "warc.paths"), str(out), "--workers.local"]
    assert carrara.run_command(argv) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"1 of 2 archives were not read to their end (bad.warc.gz: {reason}" in line
    assert found(out, crawl) == ALL
    manifest = ExtractManifest.model_validate_json((out / "_extract" / "manifest.json").read_text())
    assert [name for name, _ in manifest.damaged] == ["bad.warc.gz"]


def test_an_archive_that_may_not_be_read_is_named(
    crawl: Crawl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(tmp_path / "shut.warc.gz").mkdir()  # root may read all files, but a folder is none
    (tmp_path / "warc.paths").write_text(f"shut.warc.gz\n{crawl.warc}\n")
    out = tmp_path / "out"
    argv = ["extract", str(tmp_path / "warc.paths"), str(out), "--workers.local"]
    assert carrara.run_command(argv) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "shut.warc.gz: can't be read" in line
    assert found(out, crawl) == ALL
