import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from infra.errors import InputError
from retrieval.encoding.pictures import decode_picture


@pytest.mark.filterwarnings("ignore")  # what Pillow remarks on files that it does decode
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_damage_is_an_input_error_and_nothing_else(kind: str) -> None:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file, kind)
    for _ in range(200):
        damaged = np.frombuffer(file.getvalue(), np.uint8).copy()
        places = rng.integers(0, damaged.size, 4)
        damaged[places] = rng.integers(0, 256, 4)
        with contextlib.suppress(InputError):
            decode_picture(damaged.tobytes())


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_no_other_format_of_pillow_s_is_read(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, kind)
    with pytest.raises(InputError, match=r"not a picture; expected one of JPEG, PNG, .*AVIF$"):
        decode_picture(file.getvalue())


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_more_pixels_than_the_pipeline_takes_are_refused_before_they_are_decoded(kind: str) -> None:
    """Pillow itself only warns of so many."""
    file = io.BytesIO()
    Image.new("L", (10_000, 9_000)).save(file, kind)
    with pytest.raises(InputError, match="10000 x 9000 pixels; expected at most 89,478,485"):
        decode_picture(file.getvalue())
