"""What careless and unlucky users meet: one line, the right exit code, and nothing lost."""

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import carrara
from examples.emoji.server import serve, write_list

ROOT = Path(__file__).parents[1]
EMBEDDED = "Carrara-S/emoji_clipart"
SLUG = "Carrara-S__emoji_clipart"
LOCAL = "--workers.local"

Sums = dict[str, str]
Spoil = Callable[[Path], None]


def sums(folder: Path) -> Sums:
    """sha256 of all that stages make; their logs of themselves differ from run to run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "runs" and not path.name.endswith("_stats.json")
    }


def num_files(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*"))


def run(*argv: object) -> int:
    return carrara.run_command([str(word) for word in argv])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, beside the lines of progress."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "/s, " not in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serve() as url:
        yield url


@pytest.fixture(scope="module")
def made(site: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """list.parquet, corpus/ with all that is made from it, and packed/."""
    home = tmp_path_factory.mktemp("made")
    write_list(home / "list.parquet", site, num_pictures=40)
    for command in commands(home):
        assert run(*command) == 0, command
    return home


def commands(home: Path) -> list[list[object]]:
    corpus, packed = home / "corpus", home / "packed"
    settings = ["--image-size", 64, "--number-sample-per-shard", 20, "--allow-hosts", "127.0.0.1"]
    return [
        ["download", home / "list.parquet", corpus, *settings, "--retries", 0, LOCAL],
        ["embed", corpus, "--encoder", EMBEDDED, LOCAL],
        ["index", corpus],
        ["score", corpus, LOCAL],
        ["select", corpus, "--name", "good", "--where", "num_words > 1"],
        ["pack", corpus, packed, "--selection", "good", "--samples-per-shard", 10],
    ]


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def damage(name: str, offset: int | None = None) -> Spoil:
    """Flips a bit of the byte at `offset`, or of the one in the middle."""

    def flip(home: Path) -> None:
        data = bytearray((home / name).read_bytes())
        data[len(data) // 2 if offset is None else offset] ^= 1
        (home / name).write_bytes(data)

    return flip


def gone(name: str) -> Spoil:
    return lambda home: (home / name).unlink()


def text(name: str, content: str) -> Spoil:
    def write(home: Path) -> None:
        (home / name).write_text(content)

    return write


def folder(name: str) -> Spoil:
    def replace(home: Path) -> None:
        (home / name).unlink(missing_ok=True)
        (home / name).mkdir()

    return replace


def table(name: str, **columns: list[str]) -> Spoil:
    def write(home: Path) -> None:
        pq.write_table(pa.table(columns), home / name)

    return write


def damaged_parquet(home: Path) -> None:
    data = bytearray((home / "list.parquet").read_bytes())
    data[500:900] = b"\xff" * 400
    (home / "list.parquet").write_bytes(data)


def two_url_columns(home: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    rows = pa.Table.from_arrays(columns, names=["url", "url", "caption"])
    pq.write_table(rows, home / "list.parquet")


def keep(_home: Path) -> None:
    pass


NEW = ["download", "list.parquet", "new", LOCAL]
EMBEDDINGS, INDEX = f"corpus/embeddings/{SLUG}", f"corpus/index/{SLUG}"


@pytest.mark.parametrize(
    ("spoil", "argv", "expected"),
    [
        (gone("list.parquet"), NEW, "list.parquet: does not exist"),
        (text("list.parquet", ""), NEW, "list.parquet: empty"),
        (text("list.parquet", "words"), NEW, "can't be read as parquet"),
        (damaged_parquet, NEW, "can't be read as parquet"),
        (table("list.parquet", url=[], caption=[]), NEW, "empty"),
        (table("list.parquet", URL=["a"], text=["b"]), NEW, "it has 'URL', 'text'"),
        (two_url_columns, NEW, "2 columns 'url', expected one"),
        (text("x.json", "[" * 100_000), ["download", "x.json", "new"], "not JSON"),
        (text("x.xlsx", "x"), ["download", "x.xlsx", "new"], "of no known format"),
        (keep, ["download", "foo://x.csv", "new"], "Protocol not known: foo"),
        (keep, ["download", "list.parquet", "list.parquet/x", LOCAL], "can't be written"),
        (keep, ["download", "list.parquet", "/proc/x", LOCAL], "/proc/x/download"),
        (keep, ["download", "list.parquet", "corpus"], "with another configuration"),
        (table("x.parquet", url=["a"], caption=["b"]), ["download", "x.parquet", "corpus"], "list"),
        (keep, [*NEW, "--image-siez", 3], "--image-size?"),
        (keep, [*NEW, "--timeout", "inf"], "--timeout 'inf'"),
        (keep, [*NEW, "--contact", "a\nb"], "--contact"),
        (keep, [*NEW, "--workers.num-workers", 0], "--workers.num-workers '0'"),
        (keep, ["download", "list.parquet", "new", "--workers.address", "127.0.0.1:1"], "no Ray"),
        (
            text("x.toml", "[index]\nnum_querys = 3\n"),
            ["index", "corpus", "--config", "x.toml"],
            "num_querys",
        ),
        (keep, ["embed", "nowhere"], "nowhere: no corpus here"),
        (keep, ["verify", "list.parquet"], "list.parquet: no corpus here"),
        (text("corpus/manifest.json", "{"), ["score", "corpus"], "manifest.json: damaged"),
        (folder("corpus/manifest.json"), ["query", "corpus", "cat"], "Is a directory"),
        (keep, ["embed", "corpus", "--encoder", "ViT-B-32/nothing"], "'nothing' is no weights"),
        (keep, ["embed", "corpus", "--encoder", "hf-hub:a/b/c"], "encoder 'hf-hub:a/b/c'"),
        (keep, ["embed", "corpus", "--encoder", EMBEDDED, "--batch-size", 7], "batch_size = 128"),
        (text(f"{EMBEDDINGS}/manifest.json", "{}"), ["index", "corpus"], "manifest.json: damaged"),
        (damage(f"{INDEX}/metadata/metadata_1.parquet"), ["index", "packed"], "no embeddings"),
        (
            keep,
            ["index", "corpus", "--kind", "IDMap,Flat", "--overwrite"],
            "kind 'IDMap,Flat': faiss",
        ),
        (keep, ["query", "packed", "cat"], "no index; run `carrara index"),
        (keep, ["query", "corpus", "cat", "-k", 0], "--k '0'"),
        (keep, ["query", "corpus"], "neither was given"),
        (keep, ["query", "corpus", " "], "no words"),
        (keep, ["query", "corpus", "--image", "list.parquet"], "not a picture"),
        (keep, ["query", "corpus", "--image", "http://127.0.0.1/x.png"], "refused address"),
        (keep, ["score", "corpus", "--signals", "nothing"], "no such signal"),
        (keep, ["score", "corpus", "--signals", "no_module:Signal"], "No module named"),
        (keep, ["score", "corpus", "--signals", "json:loads"], "no signal; expected a class"),
        (text("corpus/columns/clip/manifest.json", "{}"), ["score", "corpus"], "json: damaged"),
        (keep, ["select", "corpus", "--name", "a/b", "--where", "true"], "--name 'a/b'"),
        (keep, ["select", "corpus", "--name", "a", "--where", "num_words >"], "syntax error"),
        (keep, ["select", "corpus", "--name", "a", "--where", ""], "--where ''"),
        (keep, ["select", "corpus", "--name", "good", "--where", "true"], "policy digest"),
        (text("x.toml", "x ="), ["select", "corpus", "--name", "a", "--policy", "x.toml"], "TOML"),
        (
            gone("corpus/shards/00000.parquet"),
            ["select", "corpus", "--name", "a"],
            "what to keep is not said",
        ),
        (
            text("x.toml", '[[rules]]\nname = "kept"\nkeep = "true"\n'),
            ["select", "corpus", "--name", "a", "--policy", "x.toml"],
            "names of their own",
        ),
        (
            gone("corpus/shards/00000.parquet"),
            ["select", "corpus", "--name", "a", "--where", "true"],
            "`carrara verify`",
        ),
        (
            damage("corpus/shards/00001.tar"),
            ["pack", "corpus", "new", "--selection", "good"],
            "tar",
        ),
        (damage("corpus/shards/00001.parquet"), ["report", "corpus"], "00001.parquet: damaged"),
        (gone("corpus/columns/clip/00001.parquet"), ["report", "corpus"], "00001.parquet: missing"),
        (keep, ["pack", "corpus", "new", "--selection", "nothing"], "no selection 'nothing'"),
        (keep, ["pack", "corpus", "corpus", "--selection", "good", "--overwrite"], "itself"),
        (
            keep,
            ["pack", "corpus", "packed/../corpus", "--selection", "good", "--overwrite"],
            "is the corpus itself",
        ),
        (
            lambda home: shutil.copytree(home / "corpus", home / "other"),
            ["pack", "corpus", "other", "--selection", "good"],
            "which `carrara pack` did not make; expected an empty place",
        ),
        (
            keep,
            ["pack", "corpus", "new", "--selection", "good", "--spool", "none"],
            "spool none: no such folder",
        ),
        (keep, ["report", "corpus", "--run", "none"], "none: nothing is there"),
        (text("x.png", "x"), ["report", "corpus", "--query", "x.png"], "x.png: not a picture"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_costs_nothing(
    spoil: Spoil,
    argv: list[object],
    expected: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(home)
    before = sums(home)
    assert run(*argv) == 2
    assert expected in complaint(capsys)
    after = sums(home)
    assert {name: after[name] for name in before} == before


IN_THE_FIRST_PICTURE = 700
"""A place in a tar where nothing but its digest tells of a flipped bit: headers are 512 bytes."""


@pytest.mark.parametrize(
    "argv",
    [
        ["embed", "packed", "--encoder", EMBEDDED, LOCAL],
        ["score", "packed", "--signals", "image", LOCAL],
    ],
)
def test_a_shard_of_other_bytes_is_named_by_those_who_read_it(
    argv: list[object], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage("packed/shards/00001.tar", IN_THE_FIRST_PICTURE)(home)
    assert run(*argv) == 1
    assert "00001.tar: damaged (other bytes than its manifest says)" in complaint(capsys)


FILES = {
    "download": ["shards/00000.tar", "shards/00001.parquet"],
    "embed": [f"embeddings/{SLUG}/img_emb/img_emb_0.npy", f"embeddings/{SLUG}/manifest.json"],
    "index": [f"index/{SLUG}/text.index", f"index/{SLUG}/metadata/metadata_1.parquet"],
    "score": ["columns/clip/00000.parquet", "columns/caption/manifest.json"],
    "select": ["selections/good.parquet"],
    "pack": ["shards/00001.tar", "shards/00000.parquet", "manifest.json"],
}


@pytest.mark.parametrize("stage", FILES)
def test_what_is_removed_is_made_again_with_the_same_bytes(
    stage: str, made: Path, home: Path
) -> None:
    command = next(command for command in commands(made) if command[0] == stage)
    # The list keeps its place: the corpus knows it by its bytes.
    command = [str(word).replace(str(made), str(home)) for word in command]
    before = sums(home)
    corpus = home / ("packed" if stage == "pack" else "corpus")
    for name in FILES[stage]:
        (corpus / name).unlink()
    assert run(*command) == 0
    assert sums(home) == before
    assert run("verify", corpus) == 0


@pytest.mark.parametrize(
    ("stage", "removed", "damaged"),
    [
        ("score", "columns/clip/00000.parquet", "columns/clip/00001.parquet"),
        ("pack", "shards/00000.tar", "shards/00001.tar"),
    ],
)
def test_making_one_file_again_does_not_take_another_s_damage_for_good(
    stage: str, removed: str, damaged: str, home: Path
) -> None:
    command = next(command for command in commands(home) if command[0] == stage)
    corpus = home / ("packed" if stage == "pack" else "corpus")
    (corpus / removed).unlink()
    damage(damaged)(corpus)
    assert run(*command) == 0
    assert run("verify", corpus) == 1


def test_a_chain_killed_at_every_stage_leaves_what_an_undisturbed_one_leaves(
    home: Path,
) -> None:
    before = sums(home)
    for folder_name in ("corpus/embeddings", "corpus/index", "corpus/columns", "packed"):
        shutil.rmtree(home / folder_name)
    shutil.rmtree(home / "corpus/selections")
    for command in commands(home)[1:]:
        argv = [sys.executable, str(ROOT / "carrara.py"), *map(str, command)]
        num_before = num_files(home)
        victim = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL)
        # A stage's first file is there before its last: between them is the place to strike.
        while victim.poll() is None and num_files(home) == num_before:
            time.sleep(0.002)
        victim.kill()
        victim.wait()
        assert run(*command) == 0
    assert sums(home) == before
