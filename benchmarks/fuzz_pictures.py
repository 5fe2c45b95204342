"""What becomes of malformed pictures: each is a picture or has its reason, and nothing else.

    python -m benchmarks.fuzz_pictures [--num 20000] [--seed 0]

Gives them to the resizer in a child process with a limit of memory; a crash, a hang, an answer that
isn't one, or memory that grows ends it with exit code 1 and the number of the picture, which the
same seed makes again.
"""

import io
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any, get_args

from PIL import Image

from benchmarks.fuzzing import num_and_seed
from benchmarks.machine import address_space_bytes, resident_bytes
from benchmarks.malformed_pictures import malformed_picture, malformed_pictures, whole_pictures
from pipeline.pixels.picture_header import Reason
from pipeline.pixels.resizer import Picture, PictureResizer, PixelSettings, Rejected

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


def main() -> None:
    arguments = num_and_seed(__doc__)
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
    whole_pictures()
    limit = address_space_bytes() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    at_quarter = 0
    for number, picture in enumerate(malformed_pictures(num, seed)):
        start = time.process_time()
        try:
            outcome = outcome_of(resizers[number % len(resizers)], picture.data)
        except Exception:  # whatever it is, the number of the picture comes with it
            results.send((number, traceback.format_exc()))
            return
        seconds = time.process_time() - start
        if number == num // 4:
            at_quarter = resident_bytes()
        results.send((number, outcome, seconds, (at_quarter or resident_bytes(), resident_bytes())))
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


if __name__ == "__main__":
    main()
