import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import CarraraError, ConfigError, InputError
from retrieval.asking.algebra import format_algebra, parse_algebra
from retrieval.asking.question import Term


def parsed(text: str) -> list[tuple[str, float]]:
    return [(term.text or "", term.weight) for term in parse_algebra(text)]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("french cat", [("french cat", 1)]),
        ("cat + dog - cartoon", [("cat", 1), ("dog", 1), ("cartoon", -1)]),
        ("  cat  -  dog ", [("cat", 1), ("dog", -1)]),
        ("- cartoon + cat", [("cartoon", -1), ("cat", 1)]),
        ("t-shirt, C+ and A+B", [("t-shirt, C+ and A+B", 1)]),
        ("-30 degrees", [("-30 degrees", 1)]),
        ("0.5*cat - 2*dog", [("cat", 0.5), ("dog", -2)]),
        ("1e-3*cat", [("cat", 0.001)]),
        ("2 cats", [("2 cats", 1)]),
        ("5* hotel", [("5* hotel", 1)]),
        ('"black + white" - "5*x"', [("black + white", 1), ("5*x", -1)]),
        ('0.5*"a \\"b\\" \\\\ c"', [('a "b" \\ c', 0.5)]),
        ('"hello" world', [('"hello" world', 1)]),
        ('5" disk', [('5" disk', 1)]),
        ("./cat.jpg", [("./cat.jpg", 1)]),  # files are read only where they may be
    ],
)
def test_terms_and_weights(text: str, terms: list[tuple[str, float]]) -> None:
    assert parsed(text) == terms


def test_addresses_and_samples_are_told_from_words() -> None:
    url, uid, words = parse_algebra("https://example.org/a-b.png - 2*uid:0f3c + http is a protocol")
    assert url == Term(image_url="https://example.org/a-b.png")
    assert uid == Term(uid="0f3c", weight=-2)
    assert words == Term(text="http is a protocol")
    assert parse_algebra('"https://example.org"') == [Term(text="https://example.org")]


@pytest.mark.parametrize("text", ["", "  ", "cat +", "cat + ", "+", "cat + - dog", "cat - + dog"])
def test_nothing_on_one_side_of_a_sign_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_algebra(text)
    assert "\n" not in str(raised.value)


def test_empty_quotes_have_no_words() -> None:
    with pytest.raises(InputError, match="no words"):
        parse_algebra('cat - ""')


def test_a_file_is_read_where_files_may_be(tmp_path: Path) -> None:
    path = tmp_path / "my vector.npy"
    import numpy as np

    np.save(path, np.array([3.0, 4.0], np.float16))
    words, vector = parse_algebra(f"cat - 0.5*{path}", files=True)
    assert words.text == "cat"
    assert (vector.embedding, vector.weight) == ([3.0, 4.0], -0.5)
    assert parse_algebra(f'"{path}"', files=True) == [Term(text=str(path))]


@pytest.mark.parametrize("text", ["./gone.jpg", "cat + gone.npy", "../x/gone.png"])
def test_a_file_that_is_not_there_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"gone.*no such file.*double quotes"):
        parse_algebra(text, files=True)


TERMS = st.builds(
    Term,
    text=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
    weight=st.floats(allow_nan=False, allow_infinity=False),
) | st.builds(
    Term,
    uid=st.from_regex("[0-9a-f]{32}", fullmatch=True),
    weight=st.floats(-4, 4),
)
TRICKY = st.lists(
    st.sampled_from(
        ["cat", " ", "+", "-", '"', "\\", "2*", "*", "./a.jpg", "uid:", "http://x", "\n"]
    )
).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(TERMS, min_size=1, max_size=5))
def test_what_is_written_is_read_back(terms: list[Term]) -> None:
    assert parse_algebra(format_algebra(terms)) == terms


@settings(max_examples=300, deadline=None)
@given(TRICKY)
def test_words_of_signs_and_quotes_are_read_back(text: str) -> None:
    if text.strip():
        terms = [Term(text=text), Term(text=text, weight=-0.5)]
        assert parse_algebra(format_algebra(terms), files=True) == terms


@settings(max_examples=300, deadline=None)
@given(TRICKY)
def test_any_line_is_terms_or_an_error_of_one_line(text: str) -> None:
    error = None
    terms: list[Term] = []
    try:
        terms = parse_algebra(text)
    except CarraraError as raised:
        error = str(raised)
    assert error is None or not re.search(r"[\n\r]", error)
    assert error is not None or parse_algebra(format_algebra(terms)) == terms
