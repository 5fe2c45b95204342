"""What decoding a picture may take of the machine: settings that the stage reads without loading
decoders."""

from typing import Annotated

from pydantic import Field

from infra.config import EXECUTION_ONLY, Settings


class DecodingSettings(Settings):
    """What decoding a picture may take."""

    max_decode_memory_mb: int = Field(default=2048, ge=64)
    """Memory that decoding one picture may take; beyond it the picture is given up."""
    max_decode_seconds: int = Field(default=20, ge=1)
    """CPU seconds that decoding one picture may take; beyond it the picture is given up."""
    max_waiting_mb: Annotated[int, EXECUTION_ONLY, Field(ge=1)] = 8
    """Fetched bytes that may wait for a decoder in each worker; at more, fetching pauses. Of 64 MB,
    memory touched anew for each picture made a fetch cost twice as much."""
