"""The same bytes, whatever happens: other workers, kills, archives that are read already."""

import gzip
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cluster import Workers
from tests.pipeline.crawled import Crawl, contents, extract, pairs


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
