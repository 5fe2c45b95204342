"""Malformed pictures without end.

Whole small files of all seven formats are damaged as the web damages them and as an attacker would:
bits flipped, ends cut off, runs of bytes taken from other files, sizes that lie, broken colour
profiles and EXIF, scans that repeat, one format's head on another's body. Made from a seed, never
stored. fuzz_pictures.py looks what becomes of them.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFilter

from benchmarks.icc_profiles import ADOBE_RGB, cmyk_profile, grey_profile, rgb_profile

HOSTILE_SIDES = (0, 1, 2, 255, 4096, 9400, 32767, 65535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
"""9400 x 9400 is just within the default limit of the area."""


@dataclass(frozen=True)
class Malformed:
    kind: str
    data: bytes


def malformed_pictures(num: int, seed: int = 0) -> Iterator[Malformed]:
    for number in range(num):
        yield malformed_picture(number, seed)


def malformed_picture(number: int, seed: int = 0) -> Malformed:
    """The same for the same number and seed, whatever came before."""
    random = Random(f"{seed}/{number}")
    name, whole = random.choice(whole_pictures())
    damages = random.choices(_DAMAGES, k=1 if random.random() < 0.7 else 2)
    data = bytearray(whole)
    for damage in damages:
        data = damage(data, random)
    if name.startswith("PNG") and random.random() < 0.5:
        data = _with_right_checksums(data)
    return Malformed(
        "+".join([name, *(damage.__name__.strip("_") for damage in damages)]), bytes(data)
    )


# Whole files to begin with


@cache
def whole_pictures() -> list[tuple[str, bytes]]:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
    clear = image.convert("RGBA")
    clear.putalpha(image.convert("L"))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    rgb = {"icc_profile": rgb_profile(ADOBE_RGB, 2.2), "exif": exif}
    grey = {"icc_profile": grey_profile(1.8)}
    inks = {"icc_profile": cmyk_profile(lambda _: (50.0, 10.0, 10.0))}
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", image, rgb),
        ("JPEG", image, {"progressive": True, "exif": exif}),
        ("JPEG", image, {"subsampling": 0, "restart_marker_blocks": 3}),
        ("JPEG", image.convert("L"), grey),
        ("JPEG", image.convert("CMYK"), inks),
        ("PNG", image, rgb),
        ("PNG", clear, {}),
        ("PNG", image.convert("P"), {"transparency": 3}),
        ("PNG", image.convert("LA"), grey),
        ("PNG", image, frames),
        ("WEBP", image, rgb),
        ("WEBP", clear, {"lossless": True}),
        ("WEBP", image, frames),
        ("GIF", image.convert("P"), {"transparency": 1}),
        ("GIF", image, frames),
        ("BMP", image, {}),
        ("BMP", image.convert("P"), {}),
        ("TIFF", image, rgb),
        ("TIFF", image, {"compression": "tiff_lzw"}),
        ("TIFF", image, {"compression": "jpeg"}),
        ("TIFF", image.convert("CMYK"), {"compression": "tiff_deflate"} | inks),
        ("TIFF", image.convert("1"), {"compression": "group4"}),
        ("TIFF", image, frames),
        ("AVIF", image, rgb),
        ("AVIF", clear, {"speed": 10}),
        ("AVIF", image, frames | {"speed": 10}),
    ]
    pictures = [
        (f"{name}-{picture.mode}", _saved(picture, name, options))
        for name, picture, options in made
    ]
    deep = noise.astype(np.uint16) * 257
    pictures += [
        (f"{name.upper()}-16", cv2.imencode(f".{name}", deep[:, :, :channels])[1].tobytes())
        for name in ("png", "tiff")
        for channels in (1, 3)
    ]
    return pictures


def _saved(image: Image.Image, name: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


# What happens to them

Damage = Callable[[bytearray, Random], bytearray]


def _flipped_bits(data: bytearray, random: Random) -> bytearray:
    # Half of the time near the head, where sizes, counts and offsets stand.
    reach = len(data) if random.random() < 0.5 else min(len(data), 300)
    for _ in range(random.choice((1, 1, 2, 5, 30))):
        if reach:
            data[random.randrange(reach)] ^= 1 << random.randrange(8)
    return data


def _cut_off(data: bytearray, random: Random) -> bytearray:
    return data[: random.randrange(len(data) + 1)]


def _hostile_numbers(data: bytearray, random: Random) -> bytearray:
    """Two or four bytes, of either order, in the head: sizes, counts, lengths, offsets."""
    for _ in range(random.choice((1, 2, 4))):
        width, order = random.choice(("H", "I")), random.choice("<>")
        size = struct.calcsize(width)
        limit = 1 << (8 * size)
        place = random.randrange(max(1, min(len(data), 400) - size))
        data[place : place + size] = struct.pack(
            order + width, random.choice(HOSTILE_SIDES) % limit
        )
    return data


def _hostile_size(data: bytearray, random: Random) -> bytearray:
    """Where the format keeps width and height."""
    sides = [random.choice(HOSTILE_SIDES), random.choice(HOSTILE_SIDES)]
    if data[:4] == b"\x89PNG":
        return _overwritten(data, 16, b"".join((side % (1 << 32)).to_bytes(4) for side in sides))
    if data[:3] == b"GIF":
        return _overwritten(
            data, 6, b"".join((side % (1 << 16)).to_bytes(2, "little") for side in sides)
        )
    if data[:2] == b"BM":
        return _overwritten(
            data, 18, b"".join((side % (1 << 32)).to_bytes(4, "little") for side in sides)
        )
    if data[12:16] == b"VP8X":
        return _overwritten(
            data, 24, b"".join((side % (1 << 24)).to_bytes(3, "little") for side in sides)
        )
    if data[:2] == b"\xff\xd8":
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return _overwritten(
            data, frame + 5, b"".join((side % (1 << 16)).to_bytes(2) for side in sides)
        )
    if (extents := data.find(b"ispe")) >= 0:
        return _overwritten(
            data, extents + 8, b"".join((side % (1 << 32)).to_bytes(4) for side in sides)
        )
    if data[:2] == b"II" or data[:2] == b"MM":
        return _with_tiff_value(data, random.choice((0x100, 0x101)), sides[0])
    return _hostile_numbers(data, random)


def _hostile_tag(data: bytearray, random: Random) -> bytearray:
    """A TIFF's tag gets another value; other formats' blocks of numbers are as good a place."""
    if data[:2] == b"II" or data[:2] == b"MM":
        tag = random.choice((0x102, 0x103, 0x106, 0x111, 0x112, 0x115, 0x116, 0x117, 0x11C, 0x140))
        return _with_tiff_value(data, tag, random.choice((*HOSTILE_SIDES, 3, 5, 7, 8, 16, 32)))
    return _hostile_numbers(data, random)


def _spliced(data: bytearray, random: Random) -> bytearray:
    """A run of bytes from another file, in place of some or between them."""
    other = random.choice(whole_pictures())[1]
    start = random.randrange(len(other))
    run = other[start : start + random.choice((4, 40, 400))]
    place = random.randrange(len(data) + 1)
    data[place : place + random.choice((0, len(run)))] = run
    return data


def _repeated(data: bytearray, random: Random) -> bytearray:
    """A run again and again, such as a scan, a frame, a chunk."""
    start = random.randrange(len(data) + 1)
    run = data[start : start + random.choice((16, 200, 2000))]
    data[start:start] = run * random.choice((1, 3, 50))
    return data


def _left_out(data: bytearray, random: Random) -> bytearray:
    start = random.randrange(len(data) + 1)
    del data[start : start + random.choice((1, 2, 40, 400))]
    return data


def _blanked(data: bytearray, random: Random) -> bytearray:
    start = random.randrange(len(data) + 1)
    end = min(len(data), start + random.choice((4, 64, 1000)))
    data[start:end] = random.choice((b"\0", b"\xff")) * (end - start)
    return data


def _other_head(data: bytearray, random: Random) -> bytearray:
    length = random.choice((4, 12, 32))
    return _overwritten(data, 0, random.choice(whole_pictures())[1][:length])


def _noise(data: bytearray, random: Random) -> bytearray:
    """The head, then nothing that means anything."""
    head = random.choice((2, 12, 64, 200))
    return data[:head] + random.randbytes(random.choice((0, 10, 3000)))


def _damaged_metadata(data: bytearray, random: Random) -> bytearray:
    """Numbers within the profile or the EXIF block, wherever the format keeps them."""
    starts = [data.find(mark) for mark in (b"acsp", b"Exif\0\0", b"II*\0", b"MM\0*", b"mft1")]
    found = [start for start in starts if start >= 0]
    if not found:
        return _flipped_bits(data, random)
    start = random.choice(found)
    for _ in range(random.choice((1, 4, 20))):
        place = min(len(data) - 1, max(0, start + random.randrange(-36, 300)))
        data[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return data


_DAMAGES: tuple[Damage, ...] = (
    _flipped_bits,
    _cut_off,
    _hostile_numbers,
    _hostile_size,
    _hostile_tag,
    _spliced,
    _repeated,
    _left_out,
    _blanked,
    _other_head,
    _noise,
    _damaged_metadata,
)


def _overwritten(data: bytearray, place: int, value: bytes) -> bytearray:
    data[place : place + len(value)] = value
    return data


def _with_tiff_value(data: bytearray, tag: int, value: int) -> bytearray:
    order = "<" if data[:2] == b"II" else ">"
    place = data.find(struct.pack(order + "H", tag), 8)
    if place >= 0:
        data[place + 8 : place + 12] = struct.pack(order + "I", value % (1 << 32))
    return data


def _with_right_checksums(data: bytearray) -> bytearray:
    """Else a PNG's decoder looks no further than the first chunk that was touched."""
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4)
        place = end + 4
    return data
