"""Malformed pictures without end, and what becomes of them.

    python -m benchmarks.malformed_pictures [--num 20000] [--seed 0]

Whole small files of all seven formats are damaged as the web damages them and as an attacker would:
bits flipped, ends cut off, runs of bytes taken from other files, sizes that lie, broken colour
profiles and EXIF, scans that repeat, one format's head on another's body. Made from the seed,
never stored. The command gives them to the resizer in a child process with a limit of memory; a
crash, a hang, an answer that isn't one, or memory that grows ends it with exit code 1 and the
number of the picture, which the same seed makes again.
"""

import argparse
import io
import multiprocessing
import os
import resource
import struct
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, get_args

import cv2
import numpy as np
from PIL import Image, ImageFilter

from benchmarks.icc_profiles import ADOBE_RGB, cmyk_profile, grey_profile, rgb_profile
from pipeline.picture_header import Reason
from pipeline.pixels import Picture, PictureResizer, PixelSettings, Rejected

HOSTILE_SIDES = (0, 1, 2, 255, 4096, 9400, 32767, 65535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
"""9400 x 9400 is just within the default limit of the area."""

MAX_MEMORY_BYTES = 2 << 30
"""Beyond what the libraries take; as the download's decoders have it."""

MAX_SECONDS = 20.0
"""For one picture; the download's decoders are ended then."""

MAX_GROWTH_BYTES = 64 << 20
"""From a quarter of the way on, when every cache has been filled."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"resize_mode": "keep_ratio", "image_size": 64},
    {"resize_mode": "no", "skip_reencode": True},
    {"resize_mode": "center_crop", "encode_format": "webp", "background": "#204080"},
    {"resize_mode": "keep_ratio_largest", "encode_format": "png", "encode_quality": 1},
    {"resize_only_if_bigger": True, "downscale_interpolation": "cubic", "max_aspect_ratio": 3.0},
)


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
    name, whole = random.choice(_whole_pictures())
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
def _whole_pictures() -> list[tuple[str, bytes]]:
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
    other = random.choice(_whole_pictures())[1]
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
    return _overwritten(data, 0, random.choice(_whole_pictures())[1][:length])


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


# The run


def main() -> None:
    arguments = _arguments()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_resize_all, args=(arguments.num, arguments.seed, theirs)
    )
    start = time.monotonic()
    process.start()
    theirs.close()
    outcomes, slowest, growth = _watch(ours, arguments.seed)
    process.join()
    seconds = time.monotonic() - start
    print(f"{arguments.num} malformed pictures in {seconds:.0f} s, none crashed or hung")
    for outcome, count in outcomes.most_common():
        print(f"  {count:7} {outcome}")
    print(f"  slowest {slowest[0]:.2f} s: picture {slowest[1]}, {slowest[2]}")
    print(f"  memory grew by {growth / 1e6:.0f} MB after the first quarter")
    if growth > MAX_GROWTH_BYTES:
        sys.exit("memory grows")


def _watch(results: Connection, seed: int) -> tuple[Counter[str], tuple[float, int, str], int]:
    outcomes: Counter[str] = Counter()
    slowest = (0.0, 0, "")
    number, resident = 0, [0, 0]
    while True:
        try:
            if not results.poll(MAX_SECONDS):
                sys.exit(f"picture {number} of seed {seed}: no answer for {MAX_SECONDS:.0f} s")
            answer = results.recv()
        except EOFError:
            sys.exit(f"picture {number} of seed {seed}: the process died")
        if answer is None:
            return outcomes, slowest, resident[1] - resident[0]
        if len(answer) == 2:
            sys.exit(f"picture {answer[0]} of seed {seed}: {answer[1]}")
        number, outcome, seconds, resident = answer
        outcomes[outcome] += 1
        slowest = max(slowest, (seconds, number, malformed_picture(number, seed).kind))
        number += 1


def _resize_all(num: int, seed: int, results: Connection) -> None:
    # libtiff speaks of every fault. What Python would say goes to the parent instead.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resizers = [PictureResizer(PixelSettings(**settings)) for settings in SETTINGS]
    _whole_pictures()
    limit = _pages(0) + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    at_quarter = 0
    for number, picture in enumerate(malformed_pictures(num, seed)):
        start = time.process_time()
        try:
            outcome = outcome_of(resizers[number % len(resizers)], picture.data)
        except Exception:
            results.send((number, traceback.format_exc()))
            return
        seconds = time.process_time() - start
        if number == num // 4:
            at_quarter = _pages(1)
        results.send((number, outcome, seconds, (at_quarter or _pages(1), _pages(1))))
    results.send(None)


def outcome_of(resizer: PictureResizer, data: bytes) -> str:
    """ "picture" or the reason; asserts that it is one of these and what a picture is."""
    answer = resizer(data)
    if isinstance(answer, Rejected):
        assert answer.reason in get_args(Reason), answer
        return answer.reason
    assert isinstance(answer, Picture)
    assert min(answer.width, answer.height, answer.original_width, answer.original_height) > 0
    stored = Image.open(io.BytesIO(answer.data))
    assert stored.size == (answer.width, answer.height)
    return "picture"


def _pages(field: int) -> int:
    """Bytes: of the address space (0), of it in memory (1)."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[field]) * os.sysconf("SC_PAGE_SIZE")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
