import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import read_manifest
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


@pytest.fixture(scope="module")
def signal() -> CaptionSignal:
    return CaptionSignal("/nowhere", {})


SENTENCES = {
    "en": "A brown dog runs along the beach with a stick in its mouth",
    "de": "Ein brauner Hund läuft mit einem Stock am Strand entlang",
    "fr": "Un chien brun court sur la plage avec un bâton dans la gueule",
    "es": "Un perro marrón corre por la playa con un palo en la boca",
    "it": "Un cane marrone corre sulla spiaggia con un bastone in bocca",
    "pt": "Um cachorro marrom corre na praia com um galho na boca",
    "nl": "Een bruine hond rent over het strand met een stok in zijn bek",
    "pl": "Brązowy pies biegnie po plaży z kijem w pysku",
    "ru": "Коричневая собака бежит по пляжу с палкой в зубах",
    "el": "Ένας καφέ σκύλος τρέχει στην παραλία με ένα ξύλο στο στόμα",
    "tr": "Kahverengi bir köpek ağzında bir sopayla sahilde koşuyor",
    "ar": "كلب بني يركض على الشاطئ وفي فمه عصا",
    "hi": "एक भूरा कुत्ता मुँह में लकड़ी लिए समुद्र तट पर दौड़ रहा है",
    "ja": "茶色い犬が棒をくわえて海辺を走っています",
    "ko": "갈색 개가 막대기를 물고 해변을 달리고 있다",
    "zh": "一只棕色的狗嘴里叼着一根棍子在海滩上奔跑",
}


def test_sentences_are_in_their_languages(signal: CaptionSignal) -> None:
    found = signal.languages(pa.array(SENTENCES.values()))
    assert found["language"].to_pylist() == list(SENTENCES)
    assert min(found["language_confidence"].to_pylist()) > 0.6


def test_two_words_are_told_with_less_confidence_than_a_sentence(signal: CaptionSignal) -> None:
    found = signal.languages(pa.array([SENTENCES["en"], "Iphone case"]))
    sure, unsure = found["language_confidence"].to_pylist()
    assert unsure < 0.6 < sure


@pytest.mark.parametrize("caption", [None, "", " \n", "12345", "2019-04-01 (3)", "\U0001f600"])
def test_without_a_letter_there_is_no_language(signal: CaptionSignal, caption: str | None) -> None:
    found = signal.languages(pa.array([caption], pa.string()))
    assert found["language"].to_pylist() == found["language_confidence"].to_pylist() == [None]


def test_lines_and_capitals_do_not_change_the_language(signal: CaptionSignal) -> None:
    shouted = SENTENCES["fr"].upper().replace(" ", "\n")
    assert signal.languages(pa.array([shouted]))["language"].to_pylist() == ["fr"]


@settings(deadline=None)  # the first example loads the model
@given(caption=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_a_language_or_none(signal: CaptionSignal, caption: str) -> None:
    found = signal.languages(pa.array([caption]))
    ((language,), (confidence,)) = (column.to_pylist() for column in found.values())
    assert (language is None) == (confidence is None)
    assert confidence is None or 0 <= confidence <= 1


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
