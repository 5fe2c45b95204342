import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.language import Languages


@pytest.fixture(scope="module")
def languages() -> Languages:
    return Languages()


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


def test_sentences_are_in_their_languages(languages: Languages) -> None:
    found = languages(SENTENCES.values())
    assert found["language"].to_pylist() == list(SENTENCES)
    assert min(found["language_confidence"].to_pylist()) > 0.6


def test_two_words_are_told_with_less_confidence_than_a_sentence(languages: Languages) -> None:
    found = languages([SENTENCES["en"], "Iphone case"])
    sure, unsure = found["language_confidence"].to_pylist()
    assert unsure < 0.6 < sure


@pytest.mark.parametrize("caption", [None, "", " \n", "12345", "2019-04-01 (3)", "\U0001f600"])
def test_without_a_letter_there_is_no_language(languages: Languages, caption: str | None) -> None:
    found = languages([caption])
    assert found["language"].to_pylist() == found["language_confidence"].to_pylist() == [None]


def test_lines_and_capitals_do_not_change_the_language(languages: Languages) -> None:
    shouted = SENTENCES["fr"].upper().replace(" ", "\n")
    assert languages([shouted])["language"].to_pylist() == ["fr"]


@settings(deadline=None)  # the first example loads the model
@given(caption=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_a_language_or_none(languages: Languages, caption: str) -> None:
    found = languages([caption])
    ((language,), (confidence,)) = (column.to_pylist() for column in found.values())
    assert (language is None) == (confidence is None)
    assert confidence is None or 0 <= confidence <= 1
