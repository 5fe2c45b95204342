"""Photo-like JPEGs for the benchmarks: the spectrum of photographs, edges, and any size of file.

Natural pictures have amplitudes that fall with 1/f (Field 1987, "Relations between the statistics
of natural images and the response properties of cortical cells"); flat shapes with sharp edges
stand in for objects. The same seed gives the same bytes.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZES = ((640, 480), (480, 640), (800, 600), (720, 540), (600, 600), (560, 420))
"""Width and height, as pictures of the web have them."""

NUM_SCENES = 24
"""Made of scratch, which is slow; a photo is a shifted, mirrored part of one."""

MIN_BYTES = 30_000

SCENE_SIDE = 1280

FALLOFF = 1.36
"""A little steeper than 1: lenses and JPEG itself have blurred what the web shows."""


def photos(num: int, seed: int = 0) -> Iterator[bytes]:
    """`num` JPEGs of about 30 to 200 KB, no two alike."""
    rng = np.random.default_rng(seed)
    scenes = [_scene(rng) for _ in range(min(NUM_SCENES, num))]
    for number in range(num):
        width, height = SIZES[int(rng.integers(len(SIZES)))]
        scene = scenes[number % len(scenes)]
        top, left = (int(rng.integers(SCENE_SIDE - side)) for side in (height, width))
        part = scene[top : top + height, left : left + width]
        if rng.random() < 0.5:
            part = part[:, ::-1]
        photo = Image.fromarray(np.ascontiguousarray(part))
        data = _jpeg(photo, quality=int(rng.integers(74, 90)))
        yield data if len(data) >= MIN_BYTES else _jpeg(photo, quality=95)


def write_photos(folder: Path, num: int, seed: int = 0) -> int:
    """FOLDER/000000.jpg ...; returns their bytes in all. What is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / f"{num - 1:06d}.jpg"
    if not last.exists():
        for number, data in enumerate(photos(num, seed)):
            (folder / f"{number:06d}.jpg").write_bytes(data)
    return sum((folder / f"{number:06d}.jpg").stat().st_size for number in range(num))


def _jpeg(photo: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _scene(rng: np.random.Generator) -> NDArray[np.uint8]:
    """[SCENE_SIDE, SCENE_SIDE, 3]: coloured 1/f noise with shapes laid over it."""
    shared = _pink_noise(rng)
    channels = [0.85 * shared + 0.35 * _pink_noise(rng) for _ in range(3)]
    noise = np.stack(channels, axis=-1)
    pixels = np.clip(128 + 52 * noise, 0, 255).astype(np.uint8)
    base = Image.fromarray(pixels)
    shapes = base.copy()
    draw = ImageDraw.Draw(shapes)
    for _ in range(60):
        corner = rng.integers(0, SCENE_SIDE, 2)
        size = rng.integers(20, 240, 2)
        box = [*corner.tolist(), *(corner + size).tolist()]
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return np.asarray(Image.blend(base, shapes, 0.5))


def _pink_noise(rng: np.random.Generator) -> NDArray[np.float64]:
    """[SCENE_SIDE, SCENE_SIDE] of variance 1, its amplitudes falling with 1/f."""
    spectrum = np.fft.rfft2(rng.standard_normal((SCENE_SIDE, SCENE_SIDE)))
    rows, columns = np.fft.fftfreq(SCENE_SIDE)[:, None], np.fft.rfftfreq(SCENE_SIDE)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum / frequency**FALLOFF, (SCENE_SIDE, SCENE_SIDE))
    return np.asarray(noise / noise.std())
