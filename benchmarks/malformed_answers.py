"""Malformed HTTP answers without end, made from a seed and never stored.

Sound answers (whole, chunked, compressed, redirects, refusals) are damaged as broken and hostile
servers damage them: bits flipped, ends cut off, lengths and chunk sizes that lie, header lines by
the hundred, line ends of every kind, status lines of noise, one answer on another's body, and some
that stop half-way and say nothing more. fuzz_answers.py serves them to a Fetcher.
"""

import gzip
import re
import zlib
from collections.abc import Callable
from random import Random

MAX_ANSWER_BYTES = 400_000

_BODY = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8
_HOSTILE_NUMBERS = (
    b"-1",
    b"0",
    b"18446744073709551616",
    b"4294967295",
    b"1e9",
    b"0x10",
    b"",
    b" 7 ",
)
_STATUS_LINES = (
    b"HTTP/9.9 200 OK",
    b"HTTP/2 200",
    b"HTTP/1.0 -20 X",
    b"HTTP/1.1",
    b"HTTP/1.1 99",
    b"HTTP/1.1 200",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 101 Switching",
    b"ICY 200 OK",
    b"SSH-2.0-x",
    bytes(40),
)
_LINE_ENDS = (b"\n", b"\r", b"\r\r\n", b"\n\r", b"\x00\r\n", b"\r\n ", b"\r\n\r\n")


def malformed_answer(number: int, seed: int = 0) -> bytes:
    random = Random(seed << 32 | number)
    data = random.choice(_SOUND)
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        data = random.choice(_DAMAGES)(data, random)
    return data[:MAX_ANSWER_BYTES]


def stalls(number: int, seed: int = 0) -> bool:
    """Whether the server stays silent after the answer instead of hanging up."""
    return Random(f"stall {seed} {number}").random() < 0.01


def http_answer(status: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"", body))


def length_line(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def _chunked(body: bytes) -> bytes:
    chunks = [body[start : start + 300] for start in range(0, len(body), 300)]
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


_ZIPPED = gzip.compress(_BODY)
_BOMB = gzip.compress(bytes(5_000_000))

_SOUND = (
    http_answer(b"200 OK", length_line(_BODY), b"Content-Type: image/jpeg", body=_BODY),
    http_answer(b"200 OK", b"Connection: close", body=_BODY),
    http_answer(b"200 OK", b"Transfer-Encoding: chunked", b"Trailer: X", body=_chunked(_BODY)),
    http_answer(b"200 OK", b"Content-Encoding: gzip", length_line(_ZIPPED), body=_ZIPPED),
    http_answer(b"200 OK", b"Content-Encoding: gzip", length_line(_BOMB), body=_BOMB),
    http_answer(b"200 OK", b"Content-Encoding: deflate", body=zlib.compress(_BODY)),
    http_answer(b"200 OK", b"Content-Encoding: br, gzip", body=_ZIPPED),
    http_answer(
        b"200 OK", b"X-Robots-Tag: other: noai, carrara: nofollow", length_line(b"x"), body=b"x"
    ),
    http_answer(b"200 OK", b"tdm-reservation: 1", length_line(b"x"), body=b"x"),
    http_answer(b"103 Early Hints", b"Link: </x>")
    + http_answer(b"200 OK", length_line(_BODY), body=_BODY),
    http_answer(b"204 No Content"),
    http_answer(
        b"206 Partial Content", b"Content-Range: bytes 0-9/100", length_line(_BODY), body=_BODY
    ),
    http_answer(b"301 Moved", b"Location: /elsewhere", length_line(b"")),
    http_answer(b"302 Found", b"Location: http://[::1/", length_line(b"")),
    http_answer(b"302 Found", b"Location: //\xc3\xa4\xff.localhost:0/\x80?#", length_line(b"")),
    http_answer(b"404 Not Found", length_line(b"page"), body=b"page"),
    http_answer(b"429 Busy", b"Retry-After: 0", length_line(b"")),
    http_answer(b"503 Busy", b"Date: Mon, 01 Jan 1990 00:00:00 GMT", b"Retry-After: tomorrow"),
)


def _flipped_bits(data: bytes, random: Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(random.choice((1, 3, 30))):
        place = random.randrange(min(len(damaged), 300))
        damaged[place] ^= 1 << random.randrange(8)
    return bytes(damaged)


def _cut_off(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(1, len(data))] if len(data) > 1 else data


def _noise(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    noise = random.randbytes(random.choice((1, 10, 1000)))
    return data[:place] + noise + data[place + random.choice((0, len(noise))) :]


def _hostile_numbers(data: bytes, random: Random) -> bytes:
    head, end, body = data.partition(b"\r\n\r\n")
    return re.sub(rb"\d+", lambda _: random.choice(_HOSTILE_NUMBERS), head) + end + body


def _hostile_chunks(data: bytes, random: Random) -> bytes:
    return re.sub(rb"(?m)^[0-9a-f]+;", lambda _: random.choice(_HOSTILE_NUMBERS) + b";", data)


def _many_lines(data: bytes, random: Random) -> bytes:
    status, end, rest = data.partition(b"\r\n")
    size, num = random.choice(((1, 400), (900, 20), (900, 100), (120_000, 1)))
    return status + end + b"X-%x: %s\r\n" % (random.randrange(999), b"y" * size) * num + rest


def _doubled_lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\r\n")
    place = random.randrange(len(lines))
    lines[place:place] = [lines[place]] * random.choice((1, 8))
    return b"\r\n".join(lines)


def _other_line_ends(data: bytes, random: Random) -> bytes:
    return data.replace(b"\r\n", random.choice(_LINE_ENDS), random.choice((1, 2, -1)))


def _other_status(data: bytes, random: Random) -> bytes:
    return random.choice(_STATUS_LINES) + b"\r\n" + data.partition(b"\r\n")[2]


def _spliced(data: bytes, random: Random) -> bytes:
    other = random.choice(_SOUND)
    return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]


_DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flipped_bits,
    _cut_off,
    _noise,
    _hostile_numbers,
    _hostile_chunks,
    _many_lines,
    _doubled_lines,
    _other_line_ends,
    _other_status,
    _spliced,
)
