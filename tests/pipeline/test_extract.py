"""Real archives: wget's of a site on this machine, and the WAT derived from them."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from warcio.archiveiterator import ArchiveIterator

import carrara
from infra import storage
from infra.errors import ConflictError
from infra.watching.run import Run, at_work
from pipeline.corpus import read_manifest
from pipeline.extract import Config, run
from tests.pipeline.crawled import ALL, HERE, IN_BOTH, Crawl, contents, extract, found, pairs

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


def test_how_far_it_is_is_told(crawl: Crawl, tmp_path: Path) -> None:
    config = Config(
        archives=(str(crawl.warc), str(crawl.wat)),
        root=str(tmp_path / "out"),
        rows_per_file=5,
        workers=HERE,
    )
    with at_work(Run("extract", None, config)) as told:
        num_files = run(config).details["files"]
    tasks = [(task.name, task.done, task.total, task.unit) for task in told.tasks]
    assert tasks == [
        ("extract", 2, 2, "archives"),
        ("extract: write", num_files, num_files, "files"),
    ]


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
