"""Threads, processes and Ray actors: the same batches."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from infra.cluster import Workers, connect
from infra.errors import ConfigError, DamagedError, ShortfallError
from pipeline.corpus import Manifest, shard_url
from training.config import Config, LoadingConfig
from training.data import SampleStream, make_stream
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


@pytest.mark.parametrize("decode_in", ["processes", "ray"])
def test_an_error_in_another_process_is_the_users_and_one_line(
    settings: StreamSettings, decode_in: Literal["processes", "ray"], request: pytest.FixtureRequest
) -> None:
    if decode_in == "ray":
        request.getfixturevalue("cluster")
    stream = SampleStream(replace(settings, decode_in=decode_in))
    tar = Path(shard_url(settings.root, "00001"))
    tar.write_bytes(tar.read_bytes()[:5000])
    with (
        pytest.raises(DamagedError, match=r"\A.*00001.*carrara verify.*\Z") as caught,
        prefetched(stream, range(9), range(10)) as batches,
    ):
        list(batches)
    assert type(caught.value) is DamagedError


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_is_killed_is_replaced_and_the_batches_stay_the_same(
    settings: StreamSettings, own_processes: Callable[[bytes], list[int]]
) -> None:
    there, here = SampleStream(replace(settings, decode_in="ray")), SampleStream(settings)
    steps = range(3, 40)
    with prefetched(there, steps, POSITIONS) as batches:
        for step, batch in zip(steps, batches, strict=True):
            if step == steps.start:
                os.kill(own_processes(b"ray::PartMaker")[0], signal.SIGKILL)
            same = here.batch(step, POSITIONS)
            assert batch.uids == same.uids
            assert torch.equal(batch.pixels, same.pixels)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random"}, r"loading\.on_device with data\.crop = random: it keeps each"),
        (
            {"crop": "centre", "image_size": 32, "max_aspect_ratio": 2.0, "side_multiple": 8},
            r"loading\.on_device with data\.max_aspect_ratio above 1: it keeps",
        ),
    ],
)
def test_a_corpus_on_the_device_is_of_middle_squares_alone(
    settings: StreamSettings, changes: dict[str, Any], message: str
) -> None:
    SampleStream(replace(settings, **changes))
    with pytest.raises(ConfigError, match=message):
        SampleStream(replace(settings, on_device=True, **changes))


@pytest.mark.parametrize(
    ("workers", "num_decoders", "expected"),
    [
        (Workers(local=True), 0, 16),
        (Workers(local=True), 3, 3),
        (Workers(cpus_per_worker=6.5), 0, 6),
        (Workers(cpus_per_worker=0.5), 0, 2),
    ],
)
def test_a_worker_decodes_on_all_its_cpus_and_with_two_at_least(
    config_of: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    workers: Workers,
    num_decoders: int,
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)))
    loading = LoadingConfig(num_decoders=num_decoders)
    stream = make_stream(config_of("unused", workers=workers, loading=loading))
    assert stream.settings.num_decoders == expected


def test_parts_are_even() -> None:
    assert [len(part) for part in parts_of(range(3, 13), 4)] == [2, 3, 2, 3]
    assert parts_of(range(3, 13), 4)[0].start == 3
