"""Threads, processes and Ray actors: the same batches."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from infra.cluster import Workers, connect
from infra.errors import DamagedError, ShortfallError
from pipeline.corpus import Manifest, shard_url
from training.data import SampleStream
from training.streaming.ahead import prefetched
from training.streaming.batch import StreamSettings
from training.streaming.feeding import parts_of

STEPS = range(3, 9)
POSITIONS = range(2, 9)


@pytest.fixture
def settings(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> StreamSettings:
    root = str(tmp_path / "corpus")
    make_corpus(root, num_shards=3, num_samples=8)
    return StreamSettings(
        root, image_size=16, batch_size=10, horizontal_flip=True, crop="random", num_decoders=2
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    connect(Workers())
    yield
    ray.shutdown()


@pytest.mark.parametrize("decode_in", ["processes", "ray"])
def test_all_ways_make_the_same_batches(
    settings: StreamSettings, decode_in: Literal["processes", "ray"], request: pytest.FixtureRequest
) -> None:
    if decode_in == "ray":
        request.getfixturevalue("cluster")
    there = SampleStream(replace(settings, decode_in=decode_in))
    here = SampleStream(settings)
    with prefetched(there, STEPS, POSITIONS) as batches:
        for step, batch in zip(STEPS, batches, strict=True):
            same = here.batch(step, POSITIONS)
            assert (batch.uids, batch.captions) == (same.uids, same.captions)
            assert torch.equal(batch.pixels, same.pixels)
            assert batch.pixels.is_contiguous(memory_format=torch.channels_last)


def test_an_error_in_a_process_is_the_users(settings: StreamSettings) -> None:
    stream = SampleStream(replace(settings, decode_in="processes"))
    tar = Path(shard_url(settings.root, "00001"))
    tar.write_bytes(tar.read_bytes()[:5000])
    with (
        pytest.raises(DamagedError, match="00001"),
        prefetched(stream, range(9), range(10)) as batches,
    ):
        list(batches)


def test_a_process_that_is_killed_is_a_shortfall(
    settings: StreamSettings, own_processes: Callable[[bytes], list[int]]
) -> None:
    stream = SampleStream(replace(settings, decode_in="processes"))
    with prefetched(stream, range(1000), range(10)) as batches:
        next(batches)
        os.kill(own_processes(b"training.streaming.process")[0], signal.SIGKILL)
        with pytest.raises(ShortfallError, match=r"ended with status -9.*goes on"):
            list(batches)
    assert own_processes(b"training.streaming.process") == []


def test_a_corpus_on_the_device_gives_the_same_batches(settings: StreamSettings) -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    centred = replace(settings, crop="centre")
    for device in devices:
        resident = SampleStream(replace(centred, on_device=True, device=device))
        here = SampleStream(centred)
        with prefetched(resident, STEPS, POSITIONS) as batches:
            for step, batch in zip(STEPS, batches, strict=True):
                same = here.batch(step, POSITIONS)
                assert (batch.uids, batch.captions) == (same.uids, same.captions)
                assert batch.pixels.device.type == device
                assert torch.equal(batch.pixels.cpu(), same.pixels)


def test_parts_are_even() -> None:
    assert [len(part) for part in parts_of(range(3, 13), 4)] == [2, 3, 2, 3]
    assert parts_of(range(3, 13), 4)[0].start == 3
