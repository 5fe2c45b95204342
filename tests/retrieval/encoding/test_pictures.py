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
