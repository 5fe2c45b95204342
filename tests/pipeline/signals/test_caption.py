from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import Manifest, read_manifest
from pipeline.signals.caption import CaptionSignal, score_captions


def score(caption: str | None) -> dict[str, object]:
    columns = score_captions(pa.array([caption], pa.string()))
    return {name: column[0].as_py() for name, column in columns.items()}


def test_counts_characters_words_and_letters() -> None:
    scores = score("  two cats, 1 dog ")
    assert (scores["num_characters"], scores["num_words"]) == (15, 4)
    assert scores["share_of_letters"] == pytest.approx(10 / 15)
    assert scores["share_of_repeats"] == 0


def test_letters_of_any_script_are_letters() -> None:
    assert score("ανεμόμυλος")["share_of_letters"] == 1
    assert score("風車小屋")["share_of_letters"] == 1


def test_repetition_ignores_case() -> None:
    assert score("Sale sale SALE sale")["share_of_repeats"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("caption", [None, "", "   "])
def test_nothing_said_scores_zero(caption: str | None) -> None:
    scores = score(caption)
    assert (scores["num_characters"], scores["num_words"]) == (0, 0)
    assert scores["share_of_letters"] == 0


@pytest.mark.parametrize("caption", ["IMG_0042", "DSC-1234", "holiday.JPG", "a%20b.webp"])
def test_file_names_are_flagged(caption: str) -> None:
    assert score(caption)["is_file_name"]


@pytest.mark.parametrize("caption", ["Image", "photo of", "No image available", "Logo:"])
def test_boilerplate_is_flagged(caption: str) -> None:
    assert score(caption)["is_boilerplate"]


@pytest.mark.parametrize("caption", ["photo of a cat", "logo of a bakery", "see www.cat.example"])
def test_captions_that_say_something_are_not_flagged(caption: str) -> None:
    scores = score(caption)
    assert not scores["is_file_name"]
    assert not scores["is_boilerplate"]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_shares_stay_between_zero_and_one(caption: str) -> None:
    scores = score(caption)
    assert 0 <= float(str(scores["share_of_letters"])) <= 1
    assert 0 <= float(str(scores["share_of_repeats"])) < 1 or caption.strip() == ""


def test_a_shard_gives_one_row_a_sample_and_none_for_failures(small_corpus: str) -> None:
    shard = read_manifest(small_corpus).shards[0]
    table = CaptionSignal(small_corpus, {})(shard)
    assert table.num_rows == shard.num_samples == 12
    assert table.column_names == ["uid", *CaptionSignal.schema.names]
    assert table["num_words"][0].as_py() == 2  # grinning face


def test_each_caption_has_its_language(
    make_corpus: Callable[..., Manifest], tmp_path: Path
) -> None:
    captions = {0: "Ein brauner Hund läuft mit einem Stock am Strand entlang", 1: "2024"}
    manifest = make_corpus(str(tmp_path), num_shards=1, num_samples=3, captions=captions)
    table = CaptionSignal(str(tmp_path), {})(manifest.shards[0])
    assert table["language"].to_pylist()[:2] == ["de", None]
    assert table["language_confidence"][0].as_py() > 0.9
