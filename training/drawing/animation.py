"""Pictures coming out of the noise, as a GIF, WebP or animated PNG."""

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import Image

from infra import storage
from infra.errors import ConfigError

FRAME_MS = 60
LAST_MS = 1500
"""The finished pictures stay before it begins again."""
FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}


def check_name(url: str) -> None:
    """Raises ConfigError for a name that says no format."""
    if _suffix(url) not in FORMATS:
        raise ConfigError(
            f"--animation {url}: expected a name that ends in {', '.join(sorted(FORMATS))}"
        )


def publish_animation(url: str, frames: Sequence[Image.Image]) -> str:
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    out = io.BytesIO()
    frames[0].save(
        out,
        format=FORMATS[_suffix(url)],
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
    )
    storage.publish_bytes(url, out.getvalue())
    return url


def _suffix(url: str) -> str:
    return PurePosixPath(url).suffix.lower()
