"""Hostile pictures: each is counted as a picture or under one of the reasons, and nothing else."""

import subprocess
import sys

import pytest

from benchmarks.fuzz_pictures import SETTINGS, outcome_of
from benchmarks.machine import resident_bytes
from benchmarks.malformed_pictures import malformed_picture, malformed_pictures
from pipeline.pixels.resizer import PictureResizer, PixelSettings

NUM_PICTURES = 600
"""`python -m benchmarks.fuzz_pictures` takes 20,000."""

MAX_GROWTH_BYTES = 100 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_malformed_pictures_are_counted_and_leave_no_memory_behind() -> None:
    # A smaller limit than the default, for pictures that are whole and of that size take seconds.
    limit = {"max_image_area": 1 << 22}
    resizers = [PictureResizer(PixelSettings(**settings | limit)) for settings in SETTINGS]
    outcomes = set()
    at_start = 0
    for number, picture in enumerate(malformed_pictures(NUM_PICTURES, seed=1)):
        at_start = at_start if number != NUM_PICTURES // 4 else resident_bytes()
        outcomes.add(outcome_of(resizers[number % len(resizers)], picture.data))
    assert {"picture", "not an image", "undecodable", "truncated"} <= outcomes
    assert resident_bytes() - at_start < MAX_GROWTH_BYTES


def test_the_same_seed_makes_the_same_pictures() -> None:
    assert list(malformed_pictures(20, seed=3))[17] == malformed_picture(17, seed=3)
    assert malformed_picture(17, seed=3) != malformed_picture(17, seed=4)


SHORT_OF_MEMORY = """
import io, resource, sys
from pathlib import Path
from PIL import Image
from pipeline.pixels.resizer import PictureResizer, PixelSettings

name, mode, num_megabytes = sys.argv[1:]
file = io.BytesIO()
Image.new(mode, (5000, 5000)).save(file, name)
resizer = PictureResizer(PixelSettings(resize_mode="no"))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (int(num_megabytes) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(getattr(resizer(file.getvalue()), "reason", "picture"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process's memory is limited")
@pytest.mark.parametrize(
    ("name", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("GIF", "P"), ("TIFF", "CMYK")]
)
def test_a_picture_that_memory_does_not_last_for_is_rejected(name: str, mode: str) -> None:
    command = [sys.executable, "-c", SHORT_OF_MEMORY, name, mode, "20"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert answer.stdout.strip() == "too much memory"
