import pytest

from pipeline.fetching.web_address import RefusedSchemeError, parse_web_address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://example.org/a/b.jpg?x=1", "http://example.org/a/b.jpg?x=1"),
        ("  HTTP://ExAmple.ORG:80/x#part  ", "http://example.org/x"),
        ("https://example.org:443", "https://example.org/"),
        ("https://example.org:8443/x", "https://example.org:8443/x"),
        ("https://example.org:8443/a/../x", "https://example.org:8443/x"),
        ("http://example.org:08080/x", "http://example.org:8080/x"),
        ("http://example.org:65535/x", "http://example.org:65535/x"),
        ("http://example.org./x", "http://example.org/x"),
        ("http://example.org?x=/../", "http://example.org/?x=/../"),
        ("http://user:password@example.org/x", "http://example.org/x"),
        (
            "http://exämple.org/größe ü.jpg",
            "http://xn--exmple-cua.org/gr%C3%B6%C3%9Fe%20%C3%BC.jpg",
        ),
        ("http://例え.jp/", "http://xn--r8jz45g.jp/"),
        ("http://example.org/100%/%zz/%41", "http://example.org/100%25/%25zz/%41"),
        ('http://example.org/<a>"{b}|c^`', "http://example.org/%3Ca%3E%22%7Bb%7D%7Cc%5E%60"),
        ("http://example.org/a/../../b/./c", "http://example.org/b/c"),
        ("http://example.org/public/%2E%2e/private/", "http://example.org/private/"),
        ("http://[2001:DB8:0::1]:81/x", "http://[2001:db8::1]:81/x"),
        ("http://ex_ample.org/", "http://ex_ample.org/"),
    ],
)
def test_a_url_is_written_one_way(text: str, url: str) -> None:
    assert parse_web_address(text).url == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no scheme"),
        ("no url", "no scheme"),
        ("//example.org/x", "no scheme"),
        ("http://", "no host"),
        ("http:///x.jpg", "no host"),
        ("http://[::1/", "Invalid IPv6 URL"),
        ("http://a..b/", "no host name"),
        ("http://exa mple.org/", "no host name"),
        ("http://example.org:99999/", "Port out of range"),
        ("http://example.org:65536/", "Port out of range"),
        ("http://example.org:0/", "port 0"),
        ("http://example.org:port/", "Port could not be cast"),
        ("http://example.org\\@127.0.0.1/", "no host"),
        ("http://example.org/\r\nHost: inside", "control characters"),
        ("http://exa\tmple.org/", "control characters"),
        ("http://" + "x" * 64 + ".org/", "no host name"),
        ("http://" + "x." * 130 + "org/", "no host name"),
        ("http://example.org/" + "x" * 9000, "longer than servers take"),
        ("http://\ud800.org/", "U[+]D800"),
        ("http://example.org/\ud800", "surrogates not allowed"),
    ],
)
def test_what_is_no_url_is_not_guessed_at(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_web_address(text)


@pytest.mark.parametrize(
    "text", ["file:///etc/hostname", "ftp://a/b", "gopher://a/", "data:,x", "javascript:x", "C:/x"]
)
def test_other_schemes_are_told_apart(text: str) -> None:
    with pytest.raises(RefusedSchemeError):
        parse_web_address(text)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/x.jpg", "https://example.org:8443/x.jpg"),
        ("x.jpg", "https://example.org:8443/a/x.jpg"),
        ("?y=2", "https://example.org:8443/a/b?y=2"),
        ("//other.org/x", "https://other.org/x"),
        ("http://other.org", "http://other.org/"),
        ("../../../x", "https://example.org:8443/x"),
    ],
)
def test_a_redirect_is_read_against_where_it_came_from(location: str, url: str) -> None:
    base = parse_web_address("https://example.org:8443/a/b?x=1")
    assert parse_web_address(location, base).url == url
