"""Our training step and diffusers', for benchmarks in which they take turns: each with its own
stream of the same batches and the best of its own settings.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch

from benchmarks.diffusers_unet import Settings
from benchmarks.roofline import synchronize
from pipeline.corpus import read_manifest
from training.config import Config
from training.data import make_stream
from training.loop import Trainer
from training.parallel import Worker
from training.record import RunRecord
from training.streaming.ahead import prefetched
from training.streaming.batch import Batch

NUM_STEPS = 1_000_000
"""More than any run here gets to."""


class Trains(Protocol):
    def train_step(self, batch: Batch) -> object: ...


T = TypeVar("T", bound=Trains)
Make = Callable[[Settings], Trains]


@dataclass
class Side(Generic[T]):
    """One of those that take turns, with its own stream of batches."""

    trainer: T
    batches: Iterator[Batch]
    batch_size: int
    device: torch.device
    num_steps: int = 0
    """Taken so far; those before the clock started, too."""
    data_s: float = 0.0
    spent_s: float = 0.0
    """Its own clock, which stands still while the other has its turn."""

    def step(self) -> None:
        started = time.perf_counter()
        batch = next(self.batches)
        self.data_s += time.perf_counter() - started
        self.trainer.train_step(batch)
        self.num_steps += 1

    def train(self, *, to_step: float = math.inf, to_s: float = math.inf) -> None:
        """To whichever comes first, by its own count and clock."""
        synchronize(self.device)
        started, before_s = time.perf_counter(), self.spent_s
        while self.num_steps < to_step and self.spent_s < to_s:
            self.step()
            self.spent_s = before_s + time.perf_counter() - started
        synchronize(self.device)
        self.spent_s = before_s + time.perf_counter() - started

    def images_per_s(self, seconds: float) -> float:
        """At least one step is taken."""
        num_steps, spent_s = self.num_steps, self.spent_s
        self.train(to_s=spent_s + seconds)
        return (self.num_steps - num_steps) * self.batch_size / (self.spent_s - spent_s)


@contextmanager
def taking_part(
    trainer: T, config: Config, settings: Settings, device: torch.device
) -> Iterator[Side[T]]:
    """With its batches made ahead, and everything that happens once behind it: a network is
    compiled a second time when it first meets captions of another length."""
    stream = make_stream(config, device=str(device))
    positions = range(config.batch_size)
    with prefetched(stream, range(NUM_STEPS), positions) as batches:
        side = Side(trainer, batches, config.batch_size, device)
        for _ in range(8 if settings.compiled else 2):
            side.step()
        side.data_s = 0.0
        yield side


def our_trainer(config: Config, settings: Settings, device: torch.device) -> Trainer:
    config = config.model_copy(
        update={
            "precision": "bfloat16" if settings.bfloat16 else "float32",
            "compile": "yes" if settings.compiled else "no",
        }
    )
    digest = read_manifest(config.root).digest
    record = RunRecord(config=config, corpus_digest=digest, encoder_digest="")
    return Trainer(record, Worker.current(device))


@dataclass(frozen=True)
class Best:
    settings: Settings
    images_per_s: float


def best_settings(
    name: str, make: Make, config: Config, device: torch.device, seconds: float, *, compiles: bool
) -> Best:
    """Arithmetic and layout first, then attention, then whether compiling pays with the best; each
    is tried for so long."""
    layouts = (True,) if name == "ours" else (True, False)
    tried: dict[Settings, float] = {}

    def try_out(settings: Settings) -> None:
        with taking_part(make(settings), config, settings, device) as side:
            tried[settings] = side.images_per_s(seconds)
        print(f"{name:10} {tried[settings]:8.2f} images/s  {settings}", flush=True)

    def best() -> Settings:
        return max(tried, key=tried.__getitem__)

    for bfloat16, channels_last in itertools.product((True, False), layouts):
        try_out(Settings(bfloat16, channels_last, compiled=False))
    if name == "diffusers":  # ours chooses by itself
        try_out(replace(best(), plain_attention=True))
    if compiles:
        try_out(replace(best(), compiled=True))
    return Best(best(), tried[best()])
