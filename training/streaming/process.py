"""A process beside the training process that makes parts of batches.

    python -m training.streaming.process FD     what it is to do comes through the socket FD

Reads   what a sample stream reads
Writes  pixels into memory that it shares with the training process
"""

import sys
from multiprocessing.connection import Connection
from multiprocessing.resource_tracker import unregister
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING

import numpy as np

from infra.errors import CarraraError
from training.streaming.parts import Answer, Job, Request

if TYPE_CHECKING:
    from training.streaming.pixels import Pixels


def main() -> None:
    with Connection(int(sys.argv[1])) as connection:
        job: Job = connection.recv()
        memory = SharedMemory(job.memory)
        # Python 3.11 to 3.12 would remove it at this process's end, though another made it.
        unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]
        try:
            _serve(connection, job, memory)
        except (EOFError, ConnectionError):
            pass  # the training process has ended, or wants no more
        finally:
            memory.close()


def _serve(connection: "Connection", job: Job, memory: SharedMemory) -> None:
    from training.data import SampleStream

    stream = None
    while True:
        request: Request = connection.recv()
        try:
            stream = stream or SampleStream(job.settings)
            if request.follow:
                stream.follow()
            batch = stream.batch(request.step, job.positions)
            pixels = batch.pixels.permute(0, 2, 3, 1).numpy()
            start = request.slot * job.slot_bytes + request.offset * pixels[0].nbytes
            _view(memory, start, pixels.shape)[:] = pixels
            answer = Answer(request.number, batch.uids, batch.captions, pixels.shape)
        except CarraraError as error:
            answer = Answer(request.number, [], [], error=error)
        connection.send(answer)


def _view(memory: SharedMemory, start: int, shape: tuple[int, ...]) -> "Pixels":
    size = int(np.prod(shape))
    return np.frombuffer(memory.buf or b"", np.uint8, size, start).reshape(shape)


if __name__ == "__main__":
    main()
