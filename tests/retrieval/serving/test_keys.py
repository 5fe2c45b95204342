from pathlib import Path

import pytest

from infra.errors import ConfigError
from retrieval.serving.keys import RateLimit, client_of, digest, read_keys


def test_keys_are_known_by_their_digests(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nada 0123456789abcdef\n\nbob fedcba9876543210\n")
    assert read_keys(str(file)) == {
        digest("0123456789abcdef"): "ada",
        digest("fedcba9876543210"): "bob",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no key"), ("ada", "line 1"), ("ada short", "line 1"), ("a b c d e f", "line 1")],
)
def test_a_file_of_keys_that_can_t_be_used_is_one_line(
    text: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_keys(str(file))
    with pytest.raises(ConfigError, match="no such file"):
        read_keys(str(tmp_path / "nothing"))


def test_a_bucket_fills_at_the_rate_up_to_the_burst() -> None:
    limit = RateLimit(rate=2, burst=3)
    assert [limit.wait_s("a", now=0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.wait_s("b", now=0.0) == 0
    assert limit.wait_s("a", now=0.5) == 0
    assert limit.wait_s("a", now=0.5) == 0.5
    assert [limit.wait_s("a", now=100.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_an_ipv6_customer_is_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1")
    assert client_of("2001:db8::1") != client_of("2001:db8:0:1::1")
    assert client_of("192.0.2.1") != client_of("192.0.2.2")
