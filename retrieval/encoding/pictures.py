"""Bytes of a picture -> upright RGB, transparent parts on white: what encoders and pages see.

Which formats are read is the pipeline's rule (pipeline/pixels/stored_picture.py).
"""

from PIL import Image, UnidentifiedImageError

from infra.errors import InputError
from pipeline.pixels.picture_header import DECODER_ERRORS, FORMATS, Header, read_header
from pipeline.pixels.pixel_settings import MAX_IMAGE_AREA
from pipeline.pixels.stored_picture import open_picture, upright_rgb


def check_picture(data: bytes, max_area: int = MAX_IMAGE_AREA) -> Header:
    """Its first bytes, before any decoder sees the others; raises InputError where they are of no
    picture, or of one with more pixels."""
    header = read_header(data)
    if header is None:
        raise InputError(f"not a picture; expected one of {', '.join(FORMATS)}")
    if header.width * header.height > max_area:
        raise InputError(
            f"{header.width} x {header.height} pixels; expected at most {max_area:,} in all"
        )
    return header


def decode_picture(data: bytes) -> Image.Image:
    """Raises InputError, with the reason, for bytes that can't be decoded whole."""
    header = check_picture(data)
    try:
        with open_picture(data, [header.format]) as picture:
            return upright_rgb(picture)
    except UnidentifiedImageError:
        raise _undecodable("its header is damaged") from None
    except DECODER_ERRORS as error:
        raise _undecodable(error) from error


def _undecodable(reason: object) -> InputError:
    return InputError(f"undecodable picture ({reason}); expected a whole one")
