"""Bytes of a picture -> upright RGB, transparent parts on white: what encoders and pages see."""

import io
import struct

from PIL import Image, ImageOps, UnidentifiedImageError

from infra.errors import InputError


def decode_picture(data: bytes) -> Image.Image:
    """Raises InputError, with the reason, for bytes that can't be decoded whole."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            upright = ImageOps.exif_transpose(picture)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            # On white, as `download` puts it: pages are white, and so were CLIP's.
            page = Image.new("RGBA", upright.size, "white")
            page.alpha_composite(upright.convert("RGBA"))
            return page.convert("RGB")
    except UnidentifiedImageError:
        raise InputError("not a picture in a known format") from None
    except (
        *(OSError, SyntaxError, ValueError, struct.error),
        *(RuntimeError, Image.DecompressionBombError),  # the first is the AVIF decoder's
    ) as error:
        raise InputError(f"undecodable picture ({error})") from error
