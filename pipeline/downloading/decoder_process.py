"""One decoder process as its parent sees it: started, fed, lost, started again.

Reads and writes no files.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.downloading.channel import Channel
from pipeline.downloading.decoder import READY, Decoded, DecodeJob, unpack_answer

DECODER_CRASHED = "decoder crashed"
TOO_SLOW = "too slow to decode"

NUM_KILLS = 10
"""Decoders that may be killed from outside (spot loss, the kernel short of memory) at a picture."""
START_TIMEOUT_S = 120.0
MESSAGE_TIMEOUT_S = 60
"""A message that has begun is only to be copied."""
SEND_BUFFER_BYTES = 256 << 10
"""Towards a decoder; systems' own range from 8 to 208 KiB."""

_HANDED_ON = re.compile("PATH|LANG|TZ|TMPDIR|(LC_|LD_|PYTHON|OPENCV_|OMP_).*")
"""Names of the variables that a decoder is given: none of the many that hold credentials."""

_ENVIRONMENT = {
    # A decoder decodes one picture at a time; threads that idle would still take address space.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    # glibc would give pixels back to the kernel after every picture, to be zeroed for the next.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


@dataclass(frozen=True)
class DecodedPicture:
    """A decoder's answer, and the bytes that the shard keeps; none where there is a reason."""

    facts: Decoded
    data: bytes = field(repr=False)


class LostError(Exception):
    """A decoder gave no answer. `reason` is None where it was killed from outside."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class Decoder:
    """One child process, started again when it was lost."""

    def __init__(self, job: DecodeJob, program: Sequence[str]) -> None:
        self._job, self._program = job, program
        self._spawn()

    def fileno(self) -> int:
        return self._channel.fileno()

    def wait_until_ready(self) -> None:
        for _ in range(NUM_KILLS):
            with suppress(EOFError, ConnectionError):
                if self._is_readable(START_TIMEOUT_S):
                    assert self._channel.receive() == READY
                    return
            status = self.stop()
            if status not in _FROM_OUTSIDE:
                break
            self._spawn()
        raise RuntimeError(f"no decoder starts: the last ended with status {status}")

    def restart(self) -> None:
        self.stop()
        self._spawn()
        self.wait_until_ready()

    def stop(self) -> int:
        """Returns the status with which it ended, perhaps long before."""
        self._channel.close()
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return status

    def send(self, data: bytes) -> None:
        """One picture; `receive` when there is something to read. A dead one says so there, and
        one that does not read has nothing to say."""
        with suppress(ConnectionError, BlockingIOError):
            self._channel.send(data)

    def receive(self) -> DecodedPicture:
        try:
            return DecodedPicture(*unpack_answer(self._channel.receive()))
        except (EOFError, ConnectionError):
            raise LostError(_reason_of_end(self.stop())) from None
        except TimeoutError:
            raise self._given_up(TOO_SLOW) from None
        except ValueError:  # of msgspec, too
            raise self._given_up(DECODER_CRASHED) from None

    def _given_up(self, reason: str) -> LostError:
        """It lives, and is not to be listened to."""
        self._process.kill()
        self.stop()
        return LostError(reason)

    def _is_readable(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with theirs:
            fd, job = str(theirs.fileno()), self._job.model_dump_json()
            self._process = subprocess.Popen(
                [*self._program, fd, str(os.getpid()), job],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        self._channel = Channel(ours, self._job.max_memory_mb << 20, MESSAGE_TIMEOUT_S)


_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


def _reason_of_end(status: int) -> str | None:
    if status in _FROM_OUTSIDE:
        return None
    return TOO_SLOW if status == -signal.SIGXCPU else DECODER_CRASHED


def _environment() -> dict[str, str]:
    own = {name: text for name, text in os.environ.items() if _HANDED_ON.fullmatch(name)}
    return own | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(_import_path())}


def _import_path() -> list[str]:
    """This process's, which may have been given the program by Ray; the program itself first."""
    return [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
