"""The README, followed: the demo on the corpus that ships, and the tour of the commands."""

import gc
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset
from PIL import Image

import carrara
from examples.emoji.demo import CAPTIONS, check_planted, stage_rows
from examples.emoji.server import NUM_SWAPPED_PAIRS, serve, write_list

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = str(ROOT / "tests" / "tiny.toml")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `carrara demo --fast` leaves, run as a user runs it."""
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder)
    return folder


def run_demo(folder: Path) -> str:
    command = [sys.executable, str(ROOT / "carrara.py"), "demo", str(folder), "--fast"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_stage_of_the_demo_is_accounted_for(demo: Path) -> None:
    stages = {str(row["stage"]): row for row in stage_rows(demo)}
    assert list(stages) == [
        *("download", "embed", "index", "score", "select", "pack", "train", "sample")
    ]
    assert stages["select"]["out"] == stages["pack"]["out"]


def test_every_fault_planted_in_the_list_is_caught(demo: Path) -> None:
    planted = {str(row["planted"]): row for row in check_planted(demo)}
    swapped = planted.pop("swapped caption")
    assert {str(row["planted"]) for row in planted.values()} == {
        *("404", "HTML named .jpg", "duplicate", "huge", "truncated")
    }
    for row in planted.values():
        assert row["caught"] == row["rows"], row
    assert swapped["rows"] == 2 * NUM_SWAPPED_PAIRS
    caught = swapped["caught"]
    assert isinstance(caught, int)
    assert caught >= 0.8 * 2 * NUM_SWAPPED_PAIRS, swapped
    assert "caption more likely wrong than right" in str(swapped["caught by"])


def test_the_demo_s_page_stands_alone(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert page.count("data:image/") > 20
    for caption in CAPTIONS:
        assert caption in page


# webdataset leaves the tars that it has read to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_demo_s_shards(demo: Path) -> None:
    tars = sorted(str(path) for path in (demo / "packed" / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert len(samples) == int(str(stage_rows(demo)[5]["out"]))
    with Image.open(io.BytesIO(samples[0]["jpg"])) as picture:
        assert picture.size == (64, 64)
    assert samples[0]["txt"].decode()
    gc.collect()


def test_the_same_demo_again_has_nothing_left_to_do(demo: Path) -> None:
    tar = demo / "packed" / "shards" / "00000.tar"
    before = (tar.stat().st_mtime_ns, (demo / "run" / "metrics.jsonl").read_bytes())
    run_demo(demo)
    assert (tar.stat().st_mtime_ns, (demo / "run" / "metrics.jsonl").read_bytes()) == before


def test_the_tour_of_the_commands_works_as_the_readme_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tour = README.split("## On your own list")[1].split("\n\n")[1]
    lines = [line for text in tour.splitlines() for line in text.split(" && ")]
    assert len(lines) >= 10
    monkeypatch.chdir(tmp_path)
    with serve() as base_url:
        write_list(tmp_path / "pairs.parquet", base_url, num_pictures=150)
        for line in lines:
            program, *argv = shlex.split(line)
            assert program == ".venv/bin/carrara"
            # The user's default encoder comes from a hub; the one that ships stands in for it.
            argv = ["Carrara-S/emoji_clipart" if "laion2b" in word else word for word in argv]
            assert carrara.run_command([*argv, "--config", TINY]) == 0, line
    assert (tmp_path / "cat.png").exists()
    assert (tmp_path / "corpus" / "report.html").exists()


def test_the_readme_s_two_commands_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in re.findall(r"^    make (\S+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
