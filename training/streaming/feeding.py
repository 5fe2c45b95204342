"""Who makes the batches of a worker: threads of its process, processes beside it, or Ray actors on
other machines.

All three make the same batches. Processes and actors each have a part of the worker's positions,
and so lanes of their own: together they read no more than the worker alone would.
"""

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from infra.errors import ShortfallError
from training.streaming.parts import Answer, Job, Request

if TYPE_CHECKING:
    from training.data import SampleStream
    from training.streaming.batch import Batch, StreamSettings
    from training.streaming.pixels import Pixels

NUM_SLOTS = 12
"""Batches that processes may have made ahead: more than are ever asked for at once."""


class Pending(Protocol):
    def result(self) -> "Batch": ...


class Feeder(Protocol):
    def begin(self, step: int, follow: bool = False) -> Pending:
        """`follow`: look first whether something was taken down."""


def feeder(stream: "SampleStream", positions: range) -> AbstractContextManager[Feeder]:
    kind = stream.settings.decode_in
    num = min(max(1, stream.settings.num_decoders), len(positions))
    if kind == "threads" or not len(positions):
        return _threads(stream, positions)
    parts = parts_of(positions, num)
    return _processes(stream, parts) if kind == "processes" else _actors(stream, parts)


def parts_of(positions: range, num: int) -> list[range]:
    """As even as can be."""
    cuts = [positions.start + len(positions) * i // num for i in range(num + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(cuts)]


def part_settings(settings: "StreamSettings", num_parts: int) -> "StreamSettings":
    """Of a stream that makes one of several parts, by one thread, in its share of the memory."""
    share = max(1, settings.cache_size_mb // num_parts)
    return replace(
        settings, cache_size_mb=share, num_decoders=1, decode_in="threads", on_device=False
    )


@contextmanager
def _threads(stream: "SampleStream", positions: range) -> Iterator[Feeder]:
    class Threads:
        def begin(self, step: int, follow: bool = False) -> Pending:
            if follow:
                stream.follow()
            return stream.begin(step, positions)

    yield Threads()


# Processes


@contextmanager
def _processes(stream: "SampleStream", parts: Sequence[range]) -> Iterator[Feeder]:
    num_pictures = sum(map(len, parts))
    slot_bytes = num_pictures * 3 * max(height * width for height, width in stream.plan.shapes)
    memory = SharedMemory(create=True, size=NUM_SLOTS * slot_bytes)
    settings = part_settings(stream.settings, len(parts))
    processes = [_Process(Job(settings, part, memory.name, slot_bytes)) for part in parts]
    try:
        yield _Processes(stream, processes, parts, memory, slot_bytes)
    finally:
        for process in processes:
            process.close()
        memory.close()
        memory.unlink()


class _Processes:
    def __init__(
        self,
        stream: "SampleStream",
        processes: list["_Process"],
        parts: Sequence[range],
        memory: SharedMemory,
        slot_bytes: int,
    ) -> None:
        self._stream, self._processes, self._parts = stream, processes, parts
        self._memory, self._slot_bytes = memory, slot_bytes
        self._free = threading.Semaphore(NUM_SLOTS)
        self._slots = list(range(NUM_SLOTS))

    def begin(self, step: int, follow: bool = False) -> Pending:
        self._free.acquire()
        slot = self._slots.pop()
        first = self._parts[0].start
        answers = [
            process.ask(step, slot, part.start - first, follow)
            for process, part in zip(self._processes, self._parts, strict=True)
        ]
        return _SharedBatch(self, slot, answers)

    def take(self, slot: int, answers: list[Answer]) -> "Batch":
        shape = (sum(len(answer.uids) for answer in answers), *answers[0].shape[1:])
        start = slot * self._slot_bytes
        size = int(np.prod(shape))
        shared = np.frombuffer(self._memory.buf or b"", np.uint8, size, start).reshape(shape)
        pixels = self._stream.new_pixels(shape)
        pixels.numpy()[:] = shared
        return self._stream.as_batch(
            [uid for answer in answers for uid in answer.uids],
            [caption for answer in answers for caption in answer.captions],
            pixels,
        )

    def release(self, slot: int) -> None:
        self._slots.append(slot)
        self._free.release()


class _SharedBatch:
    def __init__(self, owner: _Processes, slot: int, answers: list[Future[Answer]]) -> None:
        self._owner, self._slot, self._answers = owner, slot, answers

    def result(self) -> "Batch":
        answers = [future.result() for future in self._answers]
        try:
            return self._owner.take(self._slot, answers)
        finally:
            self._owner.release(self._slot)


class _Process:
    """One child, and a thread that hears its answers."""

    def __init__(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
            self._process = subprocess.Popen(
                [sys.executable, "-m", "training.streaming.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # A thread of torch's a core would be in the way of the other processes.
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        self._connection.send(job)
        self._waiting: dict[int, Future[Answer]] = {}
        self._numbers = itertools.count()
        self._is_closed = False
        self._thread = threading.Thread(target=self._hear, name="parts", daemon=True)
        self._thread.start()

    def ask(self, step: int, slot: int, offset: int, follow: bool) -> Future[Answer]:
        number, future = next(self._numbers), Future[Answer]()
        self._waiting[number] = future
        try:
            self._connection.send(Request(number, step, slot, offset, follow))
        except (BrokenPipeError, ConnectionError):
            self._lose()
        return future

    def close(self) -> None:
        self._is_closed = True
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        self._connection.close()

    def _hear(self) -> None:
        while True:
            try:
                answer: Answer = self._connection.recv()
            except (EOFError, ConnectionError):
                self._lose()
                return
            future = self._waiting.pop(answer.number)
            if answer.error is not None:
                future.set_exception(answer.error)
            else:
                future.set_result(answer)

    def _lose(self) -> None:
        status = self._process.wait()
        for number in list(self._waiting):
            self._waiting.pop(number).set_exception(
                ShortfallError(
                    f"a process that decodes pictures ended with status {status}; the same "
                    "command goes on from the last checkpoint"
                )
            )


# Ray actors


@contextmanager
def _actors(stream: "SampleStream", parts: Sequence[range]) -> Iterator[Feeder]:
    import ray

    settings = part_settings(stream.settings, len(parts))
    # Where there is room: the machines that train are asked for nothing.
    actor = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_restarts=-1)(PartMaker)
    actors = [actor.remote(settings, part) for part in parts]

    class Actors:
        def begin(self, step: int, follow: bool = False) -> Pending:
            refs = [one.make.options(max_task_retries=-1).remote(step, follow) for one in actors]
            return _RemoteBatch(stream, refs)

    try:
        yield Actors()
    finally:
        for one in actors:
            ray.kill(one)


class PartMaker:
    """What an actor does: part of a batch, pixels as an array that Ray shares without a copy."""

    def __init__(self, settings: "StreamSettings", positions: range) -> None:
        self._settings, self._positions = settings, positions

    @cached_property
    def _stream(self) -> "SampleStream":
        """Not made in __init__: what fails there ends the actor and takes its message along."""
        from training.data import SampleStream

        return SampleStream(self._settings)

    def make(self, step: int, follow: bool) -> tuple[list[str], list[str], "Pixels"]:
        if follow:
            self._stream.follow()
        batch = self._stream.batch(step, self._positions)
        return batch.uids, batch.captions, batch.pixels.permute(0, 2, 3, 1).numpy()


class _RemoteBatch:
    def __init__(self, stream: "SampleStream", refs: list[Any]) -> None:
        self._stream, self._refs = stream, refs

    def result(self) -> "Batch":
        import ray
        from ray.exceptions import RayTaskError

        try:
            parts = ray.get(self._refs)
        except RayTaskError as error:  # its words are the actor's whole traceback
            raise error.cause from error
        shape = (sum(len(part[0]) for part in parts), *parts[0][2].shape[1:])
        pixels = self._stream.new_pixels(shape)
        np.concatenate([part[2] for part in parts], out=pixels.numpy())
        return self._stream.as_batch(
            [uid for part in parts for uid in part[0]],
            [caption for part in parts for caption in part[1]],
            pixels,
        )
