"""The decoder process: a picture's bytes in, what a shard keeps of it out.

    python -m pipeline.downloading.decoder SOCKET PARENT JOB

A parser of hostile bytes may crash, loop or ask for all the memory there is. Here it does so alone:
this process has a limit of memory and one of CPU time for each picture, can open no file and no
connection, has none of the credentials in its parent's environment, and dies with its parent. These
are limits, no sandbox: code that gets to run here is still that user's, may signal and, where the
kernel lets it, trace the user's other processes; root's may lift the limits. Over the socket it
says READY, then gets a picture's bytes and answers with a `Decoded` and the bytes to keep, again
and again.
"""

import ctypes
import hashlib
import io
import json
import logging
import os
import resource
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import exifread
import msgspec
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from pipeline.downloading.channel import Channel
from pipeline.picture_hash import picture_hash
from pipeline.pixels.resizer import PictureResizer, PixelSettings, Rejected

READY = b"ready"
TOO_MUCH_MEMORY = "too much memory"

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

_SHUT_OFF = (
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NPROC,  # not for root
    resource.RLIMIT_CORE,
)
"""Further files and sockets, bytes in files that are open, threads and processes, core dumps."""


class DecodeJob(BaseModel):
    """What all the pictures of a download have in common."""

    model_config = ConfigDict(frozen=True)

    pixels: PixelSettings
    extract_exif: bool = True
    hash_names: tuple[str, ...] = ()
    """Of the bytes as fetched; sha256 is told in any case."""
    picture_hash: bool = False
    """Whether to compute PDQ's, of the picture as kept."""
    max_memory_mb: int = 2048
    max_seconds: int = 20
    """Of CPU time, a picture."""


_Side = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
_PictureHash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Decoded:
    """What became of one picture; with `reason` there is nothing to keep."""

    sha256: str
    """Of the bytes as fetched."""
    reason: str | None = None
    width: _Side | None = None
    height: _Side | None = None
    original_width: _Side | None = None
    original_height: _Side | None = None
    exif: str | None = None
    picture_hash: _PictureHash | None = None
    hashes: dict[str, str] = field(default_factory=dict)


Decode = Callable[[bytes], tuple[Decoded, bytes]]


def main() -> None:
    serve(PictureDecoder)


def serve(make: Callable[["DecodeJob"], Decode]) -> None:
    """Answer until the parent hangs up."""
    descriptor, parent, job_text = sys.argv[1:]
    _die_with(int(parent))
    job = DecodeJob.model_validate_json(job_text)
    decode = make(job)
    channel = Channel(socket.socket(fileno=int(descriptor)))
    _load_all(decode)
    _limit_memory(job.max_memory_mb << 20)
    _shut_off()
    channel.send(READY)
    while True:
        try:
            data = channel.receive()
        except (EOFError, ConnectionResetError):
            return
        _limit_seconds(job.max_seconds)
        try:
            decoded, kept = decode(data)
        except MemoryError:
            decoded = Decoded(hashlib.sha256(data).hexdigest(), reason=TOO_MUCH_MEMORY)
            kept = b""
        channel.send(*pack_answer(decoded, kept))


def pack_answer(decoded: Decoded, kept: bytes) -> tuple[bytes, bytes, bytes]:
    """The parts of a message."""
    head = msgspec.json.encode(decoded)
    return len(head).to_bytes(4), head, kept


def unpack_answer(message: bytes) -> tuple[Decoded, bytes]:
    """JSON, not pickle: whoever takes over a decoder gets no further. Raises DecodeError for what
    is no answer."""
    end = 4 + int.from_bytes(message[:4])
    return _DECODED.decode(message[4:end]), message[end:]


_DECODED = msgspec.json.Decoder(Decoded)


class PictureDecoder:
    """Hashes, EXIF and the resized picture."""

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        self._resize = PictureResizer(job.pixels)
        # It warns of every picture that has no EXIF.
        logging.getLogger("exifread").setLevel(logging.CRITICAL)

    def __call__(self, data: bytes) -> tuple[Decoded, bytes]:
        sha256 = hashlib.sha256(data).hexdigest()
        hashes = {
            name: sha256 if name == "sha256" else hashlib.new(name, data).hexdigest()
            for name in self._job.hash_names
        }
        picture = self._resize(data)
        if isinstance(picture, Rejected):
            return Decoded(sha256, reason=picture.reason, hashes=hashes), b""
        decoded = Decoded(
            sha256,
            width=picture.width,
            height=picture.height,
            original_width=picture.original_width,
            original_height=picture.original_height,
            exif=_exif(data) if self._job.extract_exif else None,
            hashes=hashes,
            picture_hash=_picture_hash(picture.data) if self._job.picture_hash else None,
        )
        return decoded, picture.data


def _picture_hash(data: bytes) -> str:
    return picture_hash(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).hex


def _exif(data: bytes) -> str | None:
    """As img2dataset stores it: a JSON object of exifread's names and printable values."""
    try:
        tags = exifread.process_file(io.BytesIO(data), details=False)
        return json.dumps({name: str(value).strip() for name, value in tags.items()})
    except Exception:  # a parser of hostile bytes with no errors of its own
        # Whatever it trips over, the picture is decoded and whole: only this column is lost.
        return None


def _die_with(parent: int) -> None:
    """Even in the middle of a picture, when nobody sees that the socket was closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _load_all(decode: Decode) -> None:
    """What libraries load with their first picture; from now on there are no files."""
    decode(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    # To tell of a warning Python would read the line that gave it.
    warnings.simplefilter("ignore")


def _shut_off() -> None:
    for limit in _SHUT_OFF:
        resource.setrlimit(limit, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _limit_memory(num_bytes: int) -> None:
    """So much beyond what the libraries take; elsewhere than on Linux no system holds to it."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_seconds(seconds: int) -> None:
    """From now on: SIGXCPU ends a picture that takes more CPU time, however busy the machine."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
