"""The bytes of a picture that a shard or a folder holds -> Pillow's picture, upright and in RGB.

Of Pillow's many plugins only those are asked whose formats `download` takes (picture_header.py):
some of the others would start other programs on a stranger's bytes.
"""

import io
from collections.abc import Sequence

from PIL import Image, ImageOps

from pipeline.pixels.picture_header import FORMATS


def open_picture(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Nothing is decoded yet; raises one of picture_header's DECODER_ERRORS, as decoding will."""
    return Image.open(io.BytesIO(data), formats=list(formats))


def upright_rgb(picture: Image.Image) -> Image.Image:
    """As its EXIF turns it, transparent parts on white, as `download` stores it: pages are white,
    and so were CLIP's."""
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    page = Image.new("RGBA", upright.size, "white")
    page.alpha_composite(upright.convert("RGBA"))
    return page.convert("RGB")
