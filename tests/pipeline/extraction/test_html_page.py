"""Pages as they come: encodings that are declared, undeclared and wrong; lazy pictures; soup."""

import pytest

from pipeline.extraction.html_page import decode, read_page
from pipeline.extraction.web_images import Image

RUSSIAN = "<p>Сегодня хорошая погода, и мы идём гулять в парк у реки</p>"
FRENCH = "<p>Élève à l’école près de la forêt – où ça ?</p>"


@pytest.mark.parametrize(
    ("data", "http_charset", "expected"),
    [
        (RUSSIAN.encode(), "utf-8", RUSSIAN),
        (RUSSIAN.encode("cp1251"), "windows-1251", RUSSIAN),
        (RUSSIAN.encode("koi8-r"), '"KOI8-R"', RUSSIAN),
        (RUSSIAN.encode("utf-8-sig"), "windows-1251", RUSSIAN),  # a byte order mark wins
        (RUSSIAN.encode("utf-16"), None, RUSSIAN),
        (b"\xfe\xff" + RUSSIAN.encode("utf-16-be"), "utf-8", RUSSIAN),
        (RUSSIAN.encode("utf-16-le"), "utf-16", RUSSIAN),
        (RUSSIAN.encode("cp1251"), None, RUSSIAN),  # detected
        (RUSSIAN.encode(), None, RUSSIAN),
        (RUSSIAN.encode(), "no-such-charset", RUSSIAN),
        (FRENCH.encode("cp1252"), "iso-8859-1", FRENCH),  # browsers read it as windows-1252
        ("髙①".encode("cp932"), "shift_jis", "髙①"),  # and Shift_JIS as Microsoft's
        ("龍鎔".encode("gb18030"), "gb2312", "龍鎔"),
        ("똠방각하".encode("cp949"), "euc-kr", "똠방각하"),
        (b"plain", None, "plain"),
        (b"", None, ""),
    ],
)
def test_a_page_is_decoded_as_browsers_do(
    data: bytes, http_charset: str | None, expected: str
) -> None:
    assert decode(data, http_charset) == expected


@pytest.mark.parametrize(
    "meta",
    [
        '<meta charset="{}">',
        "<META CHARSET={}>",
        '<meta http-equiv="Content-Type" content="text/html; charset={}">',
    ],
)
def test_a_page_tells_its_own_encoding(meta: str) -> None:
    for charset, text in (
        ("windows-1251", RUSSIAN),
        ("shift_jis", "こんにちは"),
        ("utf-8", FRENCH),
    ):
        page = meta.format(charset) + text
        assert decode(page.encode(charset), None) == page
    # The header's word counts for more.
    page = meta.format("windows-1251") + RUSSIAN
    assert decode(page.encode("utf-8"), "utf-8") == page


def test_a_declaration_that_is_plainly_wrong_is_not_believed() -> None:
    assert decode(RUSSIAN.encode("cp1251"), "utf-8") == RUSSIAN


def test_one_bad_byte_spoils_one_letter() -> None:
    page = RUSSIAN.encode() + b"\xff" + RUSSIAN.encode()
    assert decode(page, "utf-8") == f"{RUSSIAN}\ufffd{RUSSIAN}"
    assert decode(RUSSIAN.encode()[:-5], "utf-8").startswith("<p>Сегодня")


def images(html: str) -> list[Image]:
    return read_page(html.encode(), "utf-8")[1]


@pytest.mark.parametrize(
    ("attributes", "addresses"),
    [
        ("src=/a.jpg", ("/a.jpg",)),
        ("SRC = '/a b.jpg'", ("/a b.jpg",)),
        ("src=/a.jpg?x=1&amp;y=2", ("/a.jpg?x=1&y=2",)),
        ("src=/spinner.gif data-src=/a.jpg", ("/a.jpg", "/spinner.gif")),
        ("data-original=/a.jpg src=''", ("/a.jpg",)),
        ("data-lazy-src=/a.jpg", ("/a.jpg",)),
        ("srcset='/s.jpg 1x, /l.jpg 2x' src=/a.jpg", ("/a.jpg", "/l.jpg")),
        ("data-srcset='/l.jpg 900w,/s.jpg 90w'", ("/l.jpg",)),
        ("", ()),
    ],
)
def test_a_picture_s_addresses_best_first(attributes: str, addresses: tuple[str, ...]) -> None:
    assert images(f'<img {attributes} alt="a picture">') == [Image(addresses, "a picture")]


def test_soup_is_read_as_browsers_do() -> None:
    html = """<table><IMG SRC=/1 ALT="&lt;1&gt; &copy;&nbsp;&#233;"><tr><td><img src=/2 alt='two
        lines'/></table><!-- <img src=/3 alt=comment> --><script>"<img src=/4 alt=script>"</script>
        <noscript><img src=/5 alt=noscript></noscript><svg><image href=/6 alt=svg></svg>
        <p><b><i></p><img src=/7 src=/8 alt=seven alt=eight><textarea><img src=/9 alt=x></textarea>
        <img src=/10 alt="open to the end"""
    found = [(image.addresses[0], image.alt) for image in images(html)]
    assert found == [
        ("/1", "<1> ©\xa0é"),
        ("/2", "two\n        lines"),
        ("/5", "noscript"),
        ("/7", "seven"),
    ]


def test_the_first_base_counts() -> None:
    html = b'<base target=_top><base href="/x/"><base href="/y/"><img src=a alt="a picture">'
    assert read_page(html, None)[0] == "/x/"
    assert read_page(b"<img src=a alt=b>", None)[0] is None


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 200_000,
        "<table><a><b>" * 60_000,
        "<img src=/x alt=y>" * 50_000,
        "<p>" * 200_000 + "</p>" * 200_000,
        "&amp" * 250_000,
        "<!--" * 250_000,
        "<svg><![CDATA[" * 70_000,
    ],
)
def test_a_megabyte_of_nesting_is_read(html: str) -> None:
    _, found = read_page(f"<img src=/a alt=first>{html}<img src=/b alt=last>".encode(), "utf-8")
    assert found[0].alt == "first"


@pytest.mark.timeout(120)
def test_ten_thousand_pictures_are_read() -> None:
    """The parser's own iterator looks for each from the page's start, and would take an hour."""
    html = "".join(f'<div><img src="/{i}.jpg" alt="picture {i}"></div>' for i in range(10_000))
    assert [image.alt for image in images(html)] == [f"picture {i}" for i in range(10_000)]
