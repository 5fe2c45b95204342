"""Decoding, resizing and encoding alone: ours, img2dataset's Resizer, and the bare libraries.

    python -m benchmarks.pixels [--num-photos 200] [--rounds 5] [--mode MODE] [--photos FOLDER]

Photo-like JPEGs (benchmarks/photos.py, or a folder of one's own) are resized on one core by

    ours            pipeline.pixels.resizer.PictureResizer
    img2dataset     its Resizer, as its downloader calls it
    same calls      the libraries' calls that ours comes to, with nothing around them: the bound
    areas           libjpeg-turbo at the smallest scale >= the wanted size, INTER_AREA, encode

in turn, round after round, so that a slow minute hits all. Then what our shortcuts cost: the PSNR
of our pixels, before they are encoded, against the whole picture's exact means over areas, and for
comparison that of the JPEG encoding that follows; also for photos of more megapixels, which are
decoded at a reduced scale. Last, one photo in every format and as it may need putting right.
"""

import argparse
import io
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.icc_profiles import DISPLAY_P3, rgb_profile
from benchmarks.machine import processor
from benchmarks.photos import photos
from pipeline.pixels.colour import Pixels
from pipeline.pixels.jpeg import decode_jpeg, reduction_for
from pipeline.pixels.resize import LINEAR_UP_TO, Resizing, resize
from pipeline.pixels.resizer import PictureResizer, PixelSettings

Work = Callable[[bytes], object]

LARGE_SIDES = (1280, 1800, 2600, 4000)
"""Long sides of the photos that the reduced scales are looked at with."""


def main() -> None:
    arguments = _arguments()
    cv2.setNumThreads(1)
    pictures = _pictures(arguments.photos, arguments.num_photos)
    settings = PixelSettings(image_size=arguments.image_size, resize_mode=arguments.mode)
    kilobytes = sum(map(len, pictures)) / len(pictures) / 1e3
    print(f"{len(pictures)} photos of {kilobytes:.0f} KB, {arguments.mode} {arguments.image_size}")
    print(f"one core of {processor()}, Python {platform.python_version()}")
    compare_speed(pictures, settings, arguments.rounds)
    compare_pixels("these photos", pictures[:50], settings)
    for side in LARGE_SIDES:
        compare_pixels(f"{side} x {side * 3 // 4}", _large(pictures, side), settings)
    compare_formats(pictures[0], settings)


# Speed


def compare_speed(pictures: list[bytes], settings: PixelSettings, num_rounds: int) -> None:
    sides: dict[str, Work] = {
        "ours": PictureResizer(settings),
        "img2dataset": _img2dataset(settings),
        "same calls": same_calls(settings),
        "areas": areas(settings),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_rounds):
        for name, work in sides.items():
            rates[name].append(_rate(work, pictures))
    for name, measured in rates.items():
        ratios = [ours / other for ours, other in zip(rates["ours"], measured, strict=True)]
        print(
            f"  {name:12} {statistics.median(measured):6.0f} pictures/s a core"
            f" (best {max(measured):.0f}), ours is {statistics.median(ratios):.2f} times as fast"
        )


def compare_formats(photo: bytes, settings: PixelSettings) -> None:
    ours, theirs = PictureResizer(settings), _img2dataset(settings)
    with Image.open(io.BytesIO(photo)) as opened:
        image = opened.convert("RGB").resize((640, 480))
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = rgb_profile(DISPLAY_P3, 2.2)
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "JPEG": (image, {"quality": 85}),
        "JPEG turned": (image, {"quality": 85, "exif": turned}),
        "JPEG Display P3": (image, {"quality": 85, "icc_profile": wide}),
        "JPEG progressive": (image, {"quality": 85, "progressive": True}),
        "JPEG CMYK": (image.convert("CMYK"), {"quality": 85}),
        "PNG": (image, {}),
        "PNG transparent": (image.convert("RGBA"), {}),
        "PNG palette": (image.convert("P"), {}),
        "WEBP": (image, {}),
        "GIF": (image, {}),
        "BMP": (image, {}),
        "TIFF": (image, {}),
        "AVIF": (image, {}),
    }
    print("  640 x 480, milliseconds:      ours  img2dataset")
    for title, (picture, options) in files.items():
        file = io.BytesIO()
        picture.save(file, title.split()[0], **options)
        data = [file.getvalue()] * 10
        times = [1e3 / max(_rate(work, data) for _ in range(3)) for work in (ours, theirs)]
        print(f"    {title:20} {len(data[0]) / 1e3:4.0f} KB {times[0]:6.1f} {times[1]:6.1f}")


def _rate(work: Work, pictures: list[bytes]) -> float:
    """By the CPU's clock: what other programs take of the core is not counted."""
    start = time.process_time()
    for data in pictures:
        work(data)
    return len(pictures) / (time.process_time() - start)


def _img2dataset(settings: PixelSettings) -> Work:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from img2dataset import resizer
    theirs = resizer.Resizer(settings.image_size, settings.resize_mode, False)

    def work(data: bytes) -> object:
        # Its word about a renamed parameter is hushed in its own way: by /dev/null as stdout.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return theirs(io.BytesIO(data))

    return work


def same_calls(settings: PixelSettings) -> Work:
    resizing = _resizing(settings)

    def work(data: bytes) -> object:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        size = resizing.size_of(width, height)
        assert size is not None
        reduction = reduction_for((width, height), size)
        least = (width // reduction, height // reduction) if reduction > 1 else (0, 0)
        pixels = simplejpeg.decode_jpeg(data, "BGR", min_width=least[0], min_height=least[1])
        if width <= LINEAR_UP_TO * reduction * size[0]:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        else:
            doubled = (2 * size[0], 2 * size[1])
            pixels = cv2.resize(pixels, doubled, interpolation=cv2.INTER_LINEAR)
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return _encode(resizing.framed(pixels))

    return work


def areas(settings: PixelSettings) -> Work:
    resizing = _resizing(settings)

    def work(data: bytes) -> object:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        size = resizing.size_of(width, height)
        assert size is not None
        pixels = simplejpeg.decode_jpeg(data, "BGR", min_width=size[0], min_height=size[1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return _encode(resizing.framed(pixels))

    return work


def _resizing(settings: PixelSettings) -> Resizing:
    return Resizing(settings.image_size, settings.resize_mode, False, "lanczos", "area")


def _encode(pixels: Pixels) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


# Pixels


def compare_pixels(title: str, pictures: list[bytes], settings: PixelSettings) -> None:
    resizing = _resizing(settings)
    losses, encodings, naive, reductions = [], [], [], set()
    for data in pictures:
        whole = decode_jpeg(data, None).pixels
        height, width = whole.shape[:2]
        size = resizing.size_of(width, height)
        assert size is not None
        exact = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
        reduced = decode_jpeg(data, size)
        reductions.add(reduced.reduction)
        extent = (width / reduced.reduction, height / reduced.reduction)
        losses.append(cv2.PSNR(exact, resize(reduced.pixels, size, "area", extent)))
        least = simplejpeg.decode_jpeg(data, "BGR", min_width=size[0], min_height=size[1])
        naive.append(
            cv2.PSNR(exact, cv2.resize(least, size, interpolation=cv2.INTER_AREA))
            if least.shape != whole.shape
            else np.inf
        )
        encodings.append(cv2.PSNR(exact, simplejpeg.decode_jpeg(_encode(exact), "BGR")))
    scales = ", ".join("whole" if r == 1 else f"at 1/{r}" for r in sorted(reductions))
    print(
        f"  {title}, decoded {scales}: PSNR median {statistics.median(losses):.1f} dB, "
        f"least {min(losses):.1f}; at the smallest scale, rows uncounted, "
        f"{statistics.median(naive):.1f} and {min(naive):.1f}; "
        f"encoding at quality 95 {statistics.median(encodings):.1f}"
    )


def _large(pictures: list[bytes], side: int) -> list[bytes]:
    """A few of the photos enlarged, with the fine grain that cameras' pictures have."""
    rng = np.random.default_rng(0)
    large = []
    for data in pictures[:4]:
        size = (side, side * 3 // 4 - 1)  # odd, as is common: no scale divides it
        pixels = cv2.resize(decode_jpeg(data, None).pixels, size, interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 4, pixels.shape)
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
        large.append(bytes(simplejpeg.encode_jpeg(pixels, 85, "BGR", "420")))
    return large


def _pictures(folder: Path | None, num: int) -> list[bytes]:
    if folder is None:
        return list(photos(num))
    return [path.read_bytes() for path in sorted(folder.glob("*.jp*g"))[:num]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--mode", default="keep_ratio")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs in place of ours")
    return parser.parse_args()


if __name__ == "__main__":
    main()
