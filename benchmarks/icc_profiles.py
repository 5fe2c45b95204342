"""Small ICC profiles whose colours follow from a formula, for tests and for the fuzz corpus.

Layout as in ICC.1:2001-04 (version 2.4), the smallest that colour engines take: no texts.
"""

import struct
from collections.abc import Callable, Sequence
from itertools import product

Triple = tuple[float, float, float]
Primaries = tuple[Triple, Triple, Triple]
"""XYZ of full red, green and blue, adapted to D50."""

D50: Triple = (0.9642, 1.0, 0.8249)

SRGB: Primaries = (
    (0.4360747, 0.2225045, 0.0139322),
    (0.3850649, 0.7168786, 0.0971045),
    (0.1430804, 0.0606169, 0.7141733),
)
"""This and the next two: Lindbloom, "RGB/XYZ Matrices"; Display P3 as in Apple's own profile."""
ADOBE_RGB: Primaries = (
    (0.6097559, 0.3111242, 0.0194811),
    (0.2052401, 0.6256560, 0.0608902),
    (0.1492240, 0.0632197, 0.7448387),
)
DISPLAY_P3: Primaries = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)


def rgb_profile(primaries: Primaries, gamma: float) -> bytes:
    tags = {f"{name}XYZ": _xyz(colour) for name, colour in zip("rgb", primaries, strict=True)}
    tags |= {f"{name}TRC": _curve(gamma) for name in "rgb"}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _curve(gamma)})


def cmyk_profile(lab_of: Callable[[Sequence[int]], Triple]) -> bytes:
    """`lab_of`: the colour of each of the 16 ways to print full inks, (C, M, Y, K) of 0 and 1."""
    identity = bytes(range(256))
    corners = [_lab8(lab_of(inks)) for inks in product((0, 1), repeat=4)]
    matrix = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix
    table = head + identity * 4 + b"".join(corners) + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {"A2B0": table})


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[str, bytes]) -> bytes:
    tags = {"wtpt": _xyz(D50)} | tags
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name.encode() + struct.pack(">II", offset + len(body), len(value))
        body += value
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"", 0x02400000, device, space, connection)
    header += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += _fixed(D50)
    return header.ljust(128, b"\0") + table + body


def _xyz(colour: Triple) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(colour)


def _fixed(numbers: Sequence[float]) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _lab8(lab: Triple) -> bytes:
    lightness, a, b = lab
    return bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
