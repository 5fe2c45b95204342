"""Real archives: wget's of a site on this machine, and the WAT derived from them."""

import gzip
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.archiveiterator import ArchiveIterator

import carrara
from infra import storage
from infra.cluster import Workers
from infra.errors import ConflictError, ShortfallError
from infra.summary import Summary
from pipeline.corpus import read_manifest
from pipeline.extract import Config, run
from pipeline.extraction.extract_records import ExtractManifest
from tests.pipeline.derived_wat import derive_wat

if TYPE_CHECKING:
    pass

HERE = Workers(local=True)
HTML = "text/html"


@dataclass(frozen=True)
class Answer:
    content_type: str
    body: bytes
    is_chunked: bool = False
    status: int = 200


def pages(port: int) -> dict[str, Answer]:
    """By path. Pages of several encodings, which say so in several ways or not at all."""
    index = f"""<!doctype html><meta charset="utf-8"><title>Start</title>
        <a href="/deep/cp1252.html">1</a> <a href="/deep/sjis.html">2</a> <a href="/u16.html">3</a>
        <a href="/base.html">4</a> <a href="/silent.html">5</a> <a href="/lazy.html">6</a>
        <a href="/gone.html">7</a> <a href="/notes.txt">8</a>
        <img src="picture/1.jpg" alt="Une  crêperie\n à Quimper">
        <img src="//127.0.0.1:{port}/picture/2.jpg" alt="the other picture">
        <img src="/picture/3.jpg?a=1&amp;b=2#top" alt="Salt &amp; pepper &eacute;t&#233; &#x1F600;">
        <img src="/picture/4.jpg" alt="four"><img src="/picture/5.jpg"><img alt="without address">
        <img src="data:image/gif;base64,R0lGOD" alt="inline picture">
        <img src="http://[" alt="broken">
        <figure><img src="/picture/6.jpg" alt=""><figcaption>a caption, no alt</figcaption></figure>
        <noscript><img src="/picture/2.jpg" alt="the other picture"></noscript>"""
    cp1252 = """<html><head>
        <meta http-equiv="Content-Type" content="text/html; charset=windows-1252"></head>
        <body><img src="../picture/7.jpg" alt="Straße – “Köln”, 5 €"></body></html>"""
    sjis = '<p>こんにちは</p><img src="/picture/8.jpg" alt="東京タワーの夜景①">'
    u16 = '<html><body><img src="picture/9.jpg" alt="Закат над морем"></body></html>'
    base = (
        """<head><base href="/elsewhere/x.html"></head>
        <img src="../picture/10.jpg" alt="seen from the base">
        <img src="/picture/1.jpg" alt="Une crêperie à Quimper">"""
        + "<p>" * 500
    )
    silent = "<p>Это страница без объявленной кодировки, на русском языке.</p>" + (
        '<img src="/picture/11.jpg" alt="Красная площадь зимой">'
    )
    lazy = """<img src="/spinner.gif" data-src="/picture/12.jpg" alt="lazily loaded">
        <img srcset="/picture/13.jpg 100w, /picture/14.jpg 800w" alt="in several sizes">"""
    return {
        "/": Answer(HTML, index.encode()),
        "/deep/cp1252.html": Answer(HTML, cp1252.encode("cp1252")),
        "/deep/sjis.html": Answer(f"{HTML}; charset=Shift_JIS", sjis.encode("cp932")),
        "/u16.html": Answer(HTML, u16.encode("utf-16")),
        "/base.html": Answer(f"{HTML};charset=utf-8", base.encode(), is_chunked=True),
        "/silent.html": Answer(HTML, silent.encode("cp1251")),
        "/lazy.html": Answer(HTML, lazy.encode()),
        "/gone.html": Answer(
            HTML, b'<img src="/picture/1.jpg" alt="not found, sadly">', status=404
        ),
        "/notes.txt": Answer("text/plain", b'<img src="/picture/1.jpg" alt="no page at all">'),
    }


IN_BOTH = {
    ("/picture/1.jpg", "Une crêperie à Quimper", "/"),
    ("/picture/2.jpg", "the other picture", "/"),
    ("/picture/3.jpg?a=1&b=2", "Salt & pepper été 😀", "/"),
    ("/picture/7.jpg", "Straße – “Köln”, 5 €", "/deep/cp1252.html"),
    ("/picture/8.jpg", "東京タワーの夜景①", "/deep/sjis.html"),
    ("/picture/9.jpg", "Закат над морем", "/u16.html"),
    ("/picture/10.jpg", "seen from the base", "/base.html"),
}
SILENT = {("/picture/11.jpg", "Красная площадь зимой", "/silent.html")}
"""What takes detection, which a WAT's maker does, here not."""
LAZY = {
    ("/picture/12.jpg", "lazily loaded", "/lazy.html"),
    ("/picture/14.jpg", "in several sizes", "/lazy.html"),
}
"""What only the page itself tells of."""
ALL = IN_BOTH | SILENT | LAZY


@dataclass(frozen=True)
class Crawl:
    """The archives and the site that they are of."""

    url: str
    warc: Path
    plain_warc: Path
    wat: Path


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crawl]:
    assert shutil.which("wget"), "wget is missing: these tests need Debian's package of that name"
    folder = tmp_path_factory.mktemp("crawl")
    server = serve_pages()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for name, options in (("site", []), ("plain", ["--no-warc-compression"])):
            command = ["wget", "--quiet", "--recursive", "--level=1", "--delete-after", *options]
            command += [f"--warc-file={folder / name}", f"--directory-prefix={folder}", f"{url}/"]
            # 8: an answer was an error, as /gone.html is.
            assert subprocess.run(command, cwd=folder, check=False).returncode == 8
        warc, wat = folder / "site.warc.gz", folder / "site.warc.wat.gz"
        derive_wat(warc, wat)
        yield Crawl(url, warc, folder / "plain.warc", wat)
    finally:
        server.shutdown()
        server.server_close()


def serve_pages() -> ThreadingHTTPServer:
    from tests.pipeline.conftest import jpeg

    answers: dict[str, Answer] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            number = self.path.removeprefix("/picture/").partition(".")[0]
            missing = Answer("image/jpeg", jpeg(int(number)) if number.isdigit() else b"", False)
            answer = answers.get(self.path, missing)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            if answer.is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer.body), answer.body)
            else:
                self.send_header("Content-Length", str(len(answer.body)))
                body = answer.body
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    answers |= pages(server.server_port)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def extract(root: Path, *archives: Path, **settings: Any) -> Summary:
    return run(config(root, *archives, **settings))


def config(root: Path, *archives: Path, **settings: Any) -> Config:
    settings = {"workers": HERE} | settings
    return Config(archives=tuple(map(str, archives)), root=str(root), **settings)


def pairs(root: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(root.glob("pairs-*.parquet")))


def found(root: Path, crawl: Crawl) -> set[tuple[str, str, str]]:
    """(path of the picture, caption, path of the page)."""
    rows = pairs(root).to_pylist()
    assert all(row["url"].startswith(crawl.url) for row in rows)
    names = ("url", "caption", "page_url")
    triples = [tuple(row[name].removeprefix(crawl.url) for name in names) for row in rows]
    assert len(set(triples)) == len(triples)
    return set(triples)


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# What is found


def test_pairs_of_a_real_crawl_are_right_in_every_encoding(crawl: Crawl, tmp_path: Path) -> None:
    summary = extract(tmp_path / "out", crawl.warc)
    assert found(tmp_path / "out", crawl) == ALL
    assert summary.counts == {
        "pairs": 10,
        "duplicate": 2,  # in <noscript>, and on /base.html
        "bad address": 1,
        "no address": 1,
        "no alt text": 2,
        "not http(s)": 1,
        "short caption": 1,
    }
    assert summary.num_in == sum(summary.counts.values())
    assert summary.details["pages with pictures"] == 7


def test_a_plain_archive_gives_the_same(crawl: Crawl, tmp_path: Path) -> None:
    extract(tmp_path / "out", crawl.plain_warc)
    assert found(tmp_path / "out", crawl) == ALL


def test_a_wat_gives_the_same_but_for_lazy_pictures(crawl: Crawl, tmp_path: Path) -> None:
    extract(tmp_path / "warc", crawl.warc)
    summary = extract(tmp_path / "wat", crawl.wat)
    assert found(tmp_path / "wat", crawl) == IN_BOTH | {
        ("/spinner.gif", "lazily loaded", "/lazy.html")
    }
    assert summary.details["pages with pictures"] == 7
    # Provenance too: which record of which WARC file, read from the WAT as from the WARC.
    columns = ["url", "caption", "page_url", "record_id", "warc_file", "warc_offset"]
    ours, theirs = (pairs(tmp_path / name).select(columns).to_pylist() for name in ("wat", "warc"))
    apart = ("/lazy.html", "/silent.html")
    shared = [row for row in theirs if not row["page_url"].endswith(apart)]
    assert [row for row in ours if not row["page_url"].endswith(apart)] == shared


def test_every_pair_tells_its_record(crawl: Crawl, tmp_path: Path) -> None:
    extract(tmp_path / "out", crawl.warc)
    for row in pairs(tmp_path / "out").to_pylist():
        assert (row["warc_file"], row["archive"]) == (crawl.warc.name, crawl.warc.name)
        with crawl.warc.open("rb") as file:
            file.seek(row["warc_offset"])
            record = next(iter(ArchiveIterator(file)))
            assert record.rec_headers.get_header("WARC-Record-ID") == row["record_id"]
            assert record.rec_headers.get_header("WARC-Target-URI") == row["page_url"]
            assert record.rec_type == "response"


def test_captions_have_their_language(crawl: Crawl, tmp_path: Path) -> None:
    extract(tmp_path / "out", crawl.warc)
    table = pairs(tmp_path / "out")
    assert table.column_names[:4] == ["url", "caption", "language", "language_confidence"]
    by_caption = {row["caption"]: row for row in table.to_pylist()}
    for caption, language in (
        ("東京タワーの夜景①", "ja"),
        ("Красная площадь зимой", "ru"),
        ("Une crêperie à Quimper", "fr"),
        ("seen from the base", "en"),
    ):
        assert by_caption[caption]["language"] == language
        assert 0 < by_caption[caption]["language_confidence"] <= 1.001


def test_captions_as_short_as_one_likes(crawl: Crawl, tmp_path: Path) -> None:
    extract(tmp_path / "out", crawl.warc, min_caption_characters=4)
    assert found(tmp_path / "out", crawl) == ALL | {("/picture/4.jpg", "four", "/")}


def test_a_long_page_is_read_up_to_its_limit(crawl: Crawl, tmp_path: Path) -> None:
    summary = extract(tmp_path / "out", crawl.warc, max_page_bytes=800)
    assert summary.details["cut pages"] == 2
    assert ("/picture/10.jpg", "seen from the base", "/base.html") in found(tmp_path / "out", crawl)


# What it is for


def test_download_reads_what_extract_writes(crawl: Crawl, tmp_path: Path) -> None:
    out, corpus = tmp_path / "out", tmp_path / "corpus"
    extract(out, crawl.warc)
    argv = ["download", str(out), str(corpus), "--allow-hosts", "127.0.0.1", "--workers.local"]
    extra = ["--image-size", "32", "--retries", "0"]
    for name in ("language", "page_url", "record_id"):
        extra += ["--save-additional-columns", name]
    assert carrara.run_command([*argv, *extra]) == 0
    assert read_manifest(str(corpus)).counts["success"] == len(ALL)
    rows = pq.read_table(corpus / "shards" / "00000.parquet").to_pylist()
    assert {row["page_url"].removeprefix(crawl.url) for row in rows} == {page for _, _, page in ALL}


# Where it reads from


def test_a_folder_and_a_list_of_paths_are_read_alike(crawl: Crawl, tmp_path: Path) -> None:
    folder = tmp_path / "crawl" / "segments"
    folder.mkdir(parents=True)
    for name in ("a.warc.gz", "b.warc.gz"):
        shutil.copy(crawl.warc, folder / name)
    listed = tmp_path / "crawl" / "warc.paths.gz"
    listed.write_bytes(gzip.compress(b"segments/a.warc.gz\nsegments/b.warc.gz\n\n"))
    elsewhere = tmp_path / "wat.paths"
    elsewhere.write_text("segments/a.warc.gz\nsegments/b.warc.gz\n")
    extract(tmp_path / "1", folder)
    extract(tmp_path / "2", listed)
    extract(tmp_path / "3", elsewhere, base=str(tmp_path / "crawl"))
    one, two, three = (
        pairs(tmp_path / n).drop_columns("archive").to_pylist() for n in ("1", "2", "3")
    )
    assert one == two == three
    assert {row["archive"] for row in pairs(tmp_path / "2").to_pylist()} == {"segments/a.warc.gz"}


def test_archives_in_an_object_store(crawl: Crawl, s3_bucket: str, tmp_path: Path) -> None:
    storage.publish_bytes(storage.join(s3_bucket, "in", "a.warc.gz"), crawl.warc.read_bytes())
    listed = storage.join(s3_bucket, "warc.paths.gz")
    storage.publish_bytes(listed, gzip.compress(b"in/a.warc.gz\n"))
    out = storage.join(s3_bucket, "out")
    run(Config(archives=(listed,), root=out, base=s3_bucket, workers=HERE))
    extract(tmp_path / "out", crawl.warc)
    columns = ["url", "caption", "record_id", "warc_offset"]
    theirs = storage.read_table(storage.join(out, "pairs-00000.parquet"), columns)
    assert theirs.equals(pairs(tmp_path / "out").select(columns))


# The same bytes, whatever happens


@pytest.fixture
def many(crawl: Crawl, tmp_path: Path) -> Path:
    """A folder of 6 archives, each with the same pages, some with pairs of their own."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(6):
        data = gzip.decompress(crawl.warc.read_bytes())
        data = data.replace(b"seen from the base", b"seen from base no %d" % index)
        name = folder / f"{index}.warc"
        # Of the same length, so that the record's stays right.
        name.write_bytes(data.replace(b"seen from base no", b"seen from base n"))
    return folder


def test_workers_on_ray_give_the_same_bytes(many: Path, tmp_path: Path) -> None:
    extract(tmp_path / "here", many, rows_per_file=10)
    extract(tmp_path / "ray", many, rows_per_file=10, workers=Workers(num_workers=2))
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert len(list((tmp_path / "here").glob("pairs-*"))) > 2


KILLED = """
import contextlib, os, signal, sys
from infra import storage
from infra.cluster import Workers
from pipeline.extraction import pair_dedup
from pipeline.extract import Config, run
left, publish = int(sys.argv[3]), storage.publish
pair_dedup.FAN_IN = 2
@contextlib.contextmanager
def dying(url):
    global left
    left -= 1
    with publish(url) as path:
        yield path
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
storage.publish = dying
here = Workers(local=True)
run(Config(archives=(sys.argv[1],), root=sys.argv[2], rows_per_file=10, workers=here))
"""


def test_kills_change_no_byte(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it publishes every fifth file: archives' runs and records, merges, pairs."""
    monkeypatch.setattr("pipeline.extraction.pair_dedup.FAN_IN", 2)
    extract(tmp_path / "whole", many, rows_per_file=10)
    command = [sys.executable, "-c", KILLED, str(many), str(tmp_path / "killed"), "4"]
    num_kills = 0
    while (code := subprocess.run(command, check=False).returncode) == -signal.SIGKILL:
        num_kills += 1
        assert num_kills < 20
    assert code == 0
    assert num_kills >= 4
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_an_archive_is_read_once(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(out, many)
    before = contents(out)
    for archive in many.iterdir():  # of the same size, but nothing to read in it
        archive.write_bytes(b"\0" * archive.stat().st_size)
    assert extract(out, many).num_out > 0
    assert contents(out) == before


def test_a_pair_s_first_page_is_told_whatever_order_workers_end_in(
    many: Path, tmp_path: Path
) -> None:
    extract(tmp_path / "out", many)
    by_caption = {row["caption"]: row["archive"] for row in pairs(tmp_path / "out").to_pylist()}
    own = {f"{i}.warc" for i in range(6)}
    assert {by_caption[caption] for caption in by_caption if "base n" in caption} == own
    assert {by_caption[caption] for caption in by_caption if "base n" not in caption} == {"0.warc"}


# Damage


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


# Mistakes


def test_output_of_other_archives_or_settings_is_kept(crawl: Crawl, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(out, crawl.warc)
    before = contents(out)
    with pytest.raises(ConflictError, match="another input"):
        extract(out, crawl.wat)
    with pytest.raises(ConflictError, match="min_caption_characters = 5, now 9"):
        extract(out, crawl.warc, min_caption_characters=9)
    assert contents(out) == before
    extract(out, crawl.wat, overwrite=True)
    extract(tmp_path / "fresh", crawl.wat)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_place_with_other_files_is_refused_even_to_overwrite(
    crawl: Crawl, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.parquet").write_bytes(b"precious")
    with pytest.raises(ConflictError, match=r"mine\.parquet"):
        extract(tmp_path / "out", crawl.warc, overwrite=True)
    assert contents(tmp_path / "out").keys() == {"mine.parquet"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["nowhere.warc.gz"], "nowhere.warc.gz: does not exist"),
        (["empty"], "empty: no archives found"),
        (["empty.paths"], "empty.paths: no archives found"),
        (["words.paths"], "line 2, 'a list of words', is no archive"),
        (["broken.paths.gz"], "broken.paths.gz: not a list of paths"),
        (["list.csv"], "list.csv: no archives found"),
        ([], "--root"),
    ],
)
def test_a_mistake_is_one_line(
    names: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty.paths").write_text("\n")
    Path("words.paths").write_text("a.warc\na list of words\n")
    Path("broken.paths.gz").write_text("not gzip")
    Path("list.csv").write_text("url,caption\n")
    assert carrara.run_command(["extract", *names, "out", "--workers.local"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert not Path("out").exists()


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


def test_json_is_one_object(
    crawl: Crawl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["extract", str(crawl.warc), str(crawl.wat), str(out), "--workers.local", "--json"]
    assert carrara.run_command(argv) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_in"], summary["num_out"]) == (18 + 16, 11)
    assert summary["details"]["archives"] == 2
    assert pq.read_table(out).num_rows == 11  # the folder is a data set as it stands
