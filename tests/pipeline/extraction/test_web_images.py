"""URLs as browsers resolve them, captions tidied."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extraction.web_images import (
    BAD_ADDRESS,
    LONG_ADDRESS,
    LONG_CAPTION,
    NO_ADDRESS,
    NO_CAPTION,
    NOT_HTTP,
    SHORT_CAPTION,
    UNDECODABLE,
    Image,
    base_url_of,
    pair_of,
    tidy,
    widest,
)

PAGE = "https://example.org/a/b/page.html?x=1"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("pic.jpg", "https://example.org/a/b/pic.jpg"),
        ("../pic.jpg", "https://example.org/a/pic.jpg"),
        ("/pic.jpg", "https://example.org/pic.jpg"),
        ("//cdn.example.com/pic.jpg", "https://cdn.example.com/pic.jpg"),
        ("?id=3", "https://example.org/a/b/page.html?id=3"),
        ("http://example.com/x", "http://example.com/x"),
        ("HTTP://EXAMPLE.com:80/X#part", "http://example.com/X"),
        (" /white\tspace\n.jpg ", "https://example.org/whitespace.jpg"),
        ("/two words.jpg", "https://example.org/two%20words.jpg"),
        ("/ü/日.jpg?q=é", "https://example.org/%C3%BC/%E6%97%A5.jpg?q=%C3%A9"),
        ("//münchen.de/x", "https://xn--mnchen-3ya.de/x"),
        (r"\\cdn.example.com\x.jpg", "https://cdn.example.com/x.jpg"),
        ("data:image/png;base64,AAAA", NOT_HTTP),
        ("javascript:void(0)", NOT_HTTP),
        ("file:///etc/passwd", NOT_HTTP),
        ("ftp://example.org/x.jpg", NOT_HTTP),
        ("http://[", BAD_ADDRESS),
        ("http://a b/c", BAD_ADDRESS),
        (f"/{'long' * 2100}", LONG_ADDRESS),
    ],
)
def test_addresses_are_resolved_as_browsers_do(address: str, expected: str) -> None:
    pair = pair_of(Image((address,), "a picture"), base_url_of(PAGE, None), 5)
    assert pair == (expected if "://" not in expected else (expected, "a picture"))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (None, PAGE),
        ("", PAGE),
        ("/c/", "https://example.org/c/"),
        ("//cdn.example.com/", "https://cdn.example.com/"),
        ("http://[", PAGE),
        ("data:text/plain,x", "data:text/plain,x"),
        (f"/{'long/' * 2000}", PAGE),
    ],
)
def test_a_base_is_relative_to_its_page(base: str | None, expected: str) -> None:
    assert base_url_of(PAGE, base) == expected


def test_a_page_without_a_url_has_absolute_pictures_only() -> None:
    base = base_url_of("no url", None)
    assert base is None
    assert pair_of(Image(("/a.jpg",), "a picture"), base, 5) == BAD_ADDRESS
    there = "https://example.org/a.jpg"
    assert pair_of(Image((there,), "a picture"), base, 5) == (there, "a picture")


def test_the_first_address_that_the_web_can_be_asked_for_is_taken() -> None:
    image = Image(("data:,x", "http://[", "/b.jpg", "/c.jpg"), "a picture")
    assert pair_of(image, PAGE, 5) == ("https://example.org/b.jpg", "a picture")


@pytest.mark.parametrize(
    ("alt", "expected"),
    [
        (None, NO_CAPTION),
        ("", NO_CAPTION),
        (" \n\xa0", NO_CAPTION),
        ("four", SHORT_CAPTION),
        ("a   b", SHORT_CAPTION),
        ("broken \ufffd letters", UNDECODABLE),
        ("long " * 2000, LONG_CAPTION),
    ],
)
def test_captions_that_are_none(alt: str | None, expected: str) -> None:
    assert pair_of(Image(("/a.jpg",), alt), PAGE, 5) == expected


def test_no_address_is_told() -> None:
    assert pair_of(Image((), "a picture"), PAGE, 5) == NO_ADDRESS


@given(st.text())
def test_tidy_text_is_one_line_without_controls(text: str) -> None:
    tidied = tidy(text)
    assert tidied == tidy(tidied) == tidied.strip()
    assert not set(tidied) & {chr(code) for code in (*range(32), *range(127, 160))}
    assert "".join(tidied.split()) == "".join(tidy(text).split())


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_address_gives_a_pair_or_a_reason(address: str, base: str) -> None:
    pair = pair_of(Image((address,), "a picture"), base_url_of(PAGE, base), 5)
    if isinstance(pair, str):
        assert pair in (BAD_ADDRESS, NOT_HTTP, NO_ADDRESS)
    else:
        url, _ = pair
        assert url.startswith(("http://", "https://"))
        assert url.isascii()
        assert not set(url) & set(" \t\n#")


@pytest.mark.parametrize(
    ("srcset", "expected"),
    [
        ("/a.jpg", "/a.jpg"),
        ("/a.jpg 1x, /b.jpg 2.5x, /c.jpg 2x", "/b.jpg"),
        ("/a.jpg 100w,\n /b.jpg 800w,", "/b.jpg"),
        ("/x,y.jpg 1x, /z.jpg 2x", "/z.jpg"),
        ("/a.jpg 900w,/b.jpg 90w", "/a.jpg"),
        ("", None),
        (" , ", None),
        ("/a.jpg wide", "/a.jpg"),
    ],
)
def test_the_widest_of_a_srcset(srcset: str, expected: str | None) -> None:
    assert widest(srcset) == expected
