"""PNGs that say what they are: captions, seed, checkpoint and settings stand in their text."""

import io
import json
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def png_bytes(image: Image.Image, about: dict[str, Any]) -> bytes:
    """`about` by name, as text chunks; what isn't text as JSON. No time: the same picture and the
    same settings give the same bytes."""
    text = PngInfo()
    for name, value in about.items():
        text.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
    out = io.BytesIO()
    image.save(out, format="PNG", pnginfo=text)
    return out.getvalue()
