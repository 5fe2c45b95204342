"""Our `unet` against diffusers' UNet2DConditionModel at equal FLOPs: images a second of training.

    python -m benchmarks.unet WORK               size S at 64 pixels on a GPU, at 32 on a CPU
    python -m benchmarks.unet WORK --no-compile --num-rounds 1 --seconds 1 --channels 16     a try

The whole step of both: the same pictures and captions from the same shards, forward, backward,
clipping, AdamW, moving average. diffusers' channels are chosen so that both networks cost the same
FLOPs an image (within 3%). Each then takes the best of its own settings: bfloat16 or float32,
channels-last or not (ours always is), fused attention or plain (ours chooses by itself), compiled
or not; the two take turns. With it: MFU, the roofline and where the step's time goes. On a GPU also
uvit's MFU, in sizes S, B and L.

On a CPU compiling takes minutes for each side; --no-compile leaves it out.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.diffusers_unet import DiffusersTrainer, Settings, channels_of_equal_flops
from benchmarks.machine import processor
from benchmarks.result_corpus import build
from benchmarks.roofline import bandwidth, shares, synchronize, traffic
from infra.cluster import Workers
from pipeline.corpus import read_manifest
from training.config import SIZES, Config
from training.data import make_stream
from training.loop import Trainer
from training.network import flops_per_image
from training.parallel import Worker
from training.record import RunRecord
from training.streaming.ahead import prefetched
from training.streaming.batch import Batch
from training.text import make_captions
from training.watching.peak import measured_flops, peak_flops

NUM_TEXT_TOKENS = 16
"""That FLOPs are counted with."""
NUM_STEPS = 1_000_000
"""More than any round gets to."""


TOLERANCE = 0.03
"""Of equal FLOPs."""
TARGET = 1.2
PASSES = {"L": 64, "XL": 32}
"""Pictures in one pass of the larger sizes, to stay within 80 GB."""


class Trains(Protocol):
    def train_step(self, batch: Batch) -> object: ...


Make = Callable[[Settings], Trains]


@dataclass
class Side:
    """One of those that take turns, with its own stream of batches."""

    trainer: Trains
    batches: Iterator[Batch]
    batch_size: int
    device: torch.device
    data_s: float = 0.0
    spent_s: float = 0.0

    def step(self) -> None:
        started = time.perf_counter()
        batch = next(self.batches)
        self.data_s += time.perf_counter() - started
        self.trainer.train_step(batch)

    def images_per_s(self, seconds: float) -> float:
        """At least one step is taken."""
        synchronize(self.device)
        started, num_steps = time.perf_counter(), 0
        while not num_steps or time.perf_counter() - started < seconds:
            self.step()
            num_steps += 1
        synchronize(self.device)
        elapsed_s = time.perf_counter() - started
        self.spent_s += elapsed_s
        return num_steps * self.batch_size / elapsed_s


def main() -> None:
    arguments = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus, _ = build(arguments.work, emoji_only=True)
    config = make_config(arguments, corpus, "unet", arguments.size)
    captions = make_captions(config, device)
    captions.remember(make_stream(config, 1).captions())
    flops = flops_per_image(config, captions.width, NUM_TEXT_TOKENS).forward
    channels, their_flops = channels_of_equal_flops(config, captions.width, NUM_TEXT_TOKENS, flops)
    rates = Rates.measured(device)
    print(rates, f"batches of {config.batch_size} at {config.image_size} pixels", sep="\n")
    print(
        f"FLOPs an image, forward: ours {flops / 1e9:.3f} G, diffusers' with channels {channels} "
        f"{their_flops / 1e9:.3f} G ({their_flops / flops - 1:+.1%})"
    )
    assert abs(their_flops / flops - 1) < TOLERANCE

    def ours(settings: Settings) -> Trainer:
        return our_trainer(config, settings, device)

    def peer(settings: Settings) -> DiffusersTrainer:
        return DiffusersTrainer(config, channels, captions, settings, device)

    makers: dict[str, Make] = {"ours": ours, "diffusers": peer}
    best = {name: best_settings(name, makers[name], config, arguments, device) for name in makers}
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(taking_part(make(best[name]), config, best[name], device))
            for name, make in makers.items()
        }
        speeds = take_turns(sides, arguments)
        for name, side in sides.items():
            cost = 3 * (flops if name == "ours" else their_flops)
            explain(name, side, best[name], statistics.median(speeds[name]), cost, rates)
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["diffusers"], strict=True)]
    print(f"\nours / diffusers: {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to "
          f"{max(ratios):.2f}; expected at least {TARGET})")  # fmt: skip
    for size in arguments.uvit:
        show_uvit(arguments, corpus, size, rates)


def parse() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", default="S", choices=SIZES["unet"])
    parser.add_argument("--channels", type=int, help="in place of the size's, for a try")
    parser.add_argument("--image-size", type=int, default=64 if on_gpu else 32)
    parser.add_argument("--batch-size", type=int, default=256 if on_gpu else 16)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a side in a round")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--uvit", nargs="*", default=["S", "B", "L"] if on_gpu else [])
    return parser.parse_args()


def make_config(arguments: argparse.Namespace, corpus: Path, network: str, size: str) -> Config:
    shape: dict[str, float] = {"dropout": 0.0}
    if arguments.channels and network == "unet":
        shape |= {"channels": arguments.channels}
    return Config(
        root=str(corpus),
        run=str(arguments.work / "run"),  # where nothing is written
        encoder="Carrara-S/emoji_clipart",
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        max_batch_per_worker=PASSES.get(size, 256),
        held_out=0.0,
        num_steps=NUM_STEPS,
        workers=Workers(local=True),
        **{"network": network, "size": size, network: shape},
    )


# The sides


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


@contextmanager
def taking_part(
    trainer: Trains, config: Config, settings: Settings, device: torch.device
) -> Iterator[Side]:
    """With its batches made ahead, and everything that happens once behind it: a network is
    compiled a second time when it first meets captions of another length."""
    stream = make_stream(config, 2, device=str(device))
    positions = range(config.batch_size)
    with prefetched(stream, range(NUM_STEPS), positions) as batches:
        side = Side(trainer, batches, config.batch_size, device)
        for _ in range(8 if settings.compiled else 2):
            side.step()
        yield side


def best_settings(
    name: str, make: Make, config: Config, arguments: argparse.Namespace, device: torch.device
) -> Settings:
    """Arithmetic and layout first, then attention, then whether compiling pays with the best."""
    layouts = (True,) if name == "ours" else (True, False)
    tried: dict[Settings, float] = {}

    def try_out(settings: Settings) -> None:
        with taking_part(make(settings), config, settings, device) as side:
            tried[settings] = side.images_per_s(arguments.seconds / 2)
        print(f"{name:10} {tried[settings]:8.2f} images/s  {settings}", flush=True)

    for bfloat16, channels_last in itertools.product((True, False), layouts):
        try_out(Settings(bfloat16, channels_last, compiled=False))
    if name == "diffusers":  # ours chooses by itself
        try_out(replace(max(tried, key=tried.__getitem__), plain_attention=True))
    if not arguments.no_compile:
        try_out(replace(max(tried, key=tried.__getitem__), compiled=True))
    return max(tried, key=tried.__getitem__)


def take_turns(sides: dict[str, Side], arguments: argparse.Namespace) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.num_rounds):
        for name, side in sides.items():
            speeds[name].append(side.images_per_s(arguments.seconds))
        told = ", ".join(f"{name} {speeds[name][-1]:.2f}" for name in sides)
        print(f"round: {told} images/s", flush=True)
    return speeds


# What it means


@dataclass(frozen=True)
class Rates:
    """What the device can do."""

    device: torch.device
    peaks: dict[bool, tuple[float, str]]
    """Operations a second in float32 and bfloat16, and where the figure is from."""
    products: dict[bool, float]
    """What large products reach here."""
    bytes_per_s: float

    @classmethod
    def measured(cls, device: torch.device) -> "Rates":
        dtypes = {False: torch.float32, True: torch.bfloat16}
        return cls(
            device,
            {half: peak_flops(device, dtype) for half, dtype in dtypes.items()},
            {half: measured_flops(device, dtype) for half, dtype in dtypes.items()},
            bandwidth(device),
        )

    def __str__(self) -> str:
        name = processor() if self.device.type == "cpu" else torch.cuda.get_device_name()
        return (
            f"{name}: products reach {self.products[False] / 1e12:.3g} TFLOP/s in float32 and "
            f"{self.products[True] / 1e12:.3g} in bfloat16, copies {self.bytes_per_s / 1e9:.3g} "
            "GB/s"
        )


def explain(
    name: str, side: Side, settings: Settings, speed: float, flops: int, rates: Rates
) -> None:
    """MFU, the roofline, and what bounds the step."""
    peak, source = rates.peaks[settings.bfloat16]
    compute_s = flops * side.batch_size / rates.products[settings.bfloat16]
    step_s = side.batch_size / speed
    print(f"\n{name}: {speed:.2f} images/s  ({settings})")
    print(f"  MFU {flops * speed / peak:.1%} of {peak / 1e12:.3g} TFLOP/s ({source})")
    if not settings.compiled:  # compiled, an operator's traffic is not to be seen
        moved = traffic(side.step)
        memory_s = moved / rates.bytes_per_s
        bound = "arithmetic" if compute_s > memory_s else "memory"
        print(
            f"  roofline: a step of {step_s:.3f} s computes for {compute_s:.3f} s at best and "
            f"moves {moved / 1e9:.3g} GB, {memory_s:.3f} s if none of it stays in a cache; "
            f"{flops * side.batch_size / moved:.0f} FLOP a byte; the longer of them: {bound}"
        )
    print(
        "  time: " + ", ".join(f"{k} {v:.0%}" for k, v in shares(side.step, rates.device).items())
    )
    print(f"  waits for data: {side.data_s / side.spent_s:.1%}")


def show_uvit(arguments: argparse.Namespace, corpus: Path, size: str, rates: Rates) -> None:
    config = make_config(arguments, corpus, "uvit", size)
    settings = Settings(
        bfloat16=rates.device.type == "cuda", channels_last=True, compiled=not arguments.no_compile
    )
    trainer = our_trainer(config, settings, rates.device)
    with taking_part(trainer, config, settings, rates.device) as side:
        speed = side.images_per_s(arguments.seconds)
        width = make_captions(config, rates.device).width
        flops = flops_per_image(config, width, NUM_TEXT_TOKENS).training
        explain(f"uvit-{size}", side, settings, speed, flops, rates)


if __name__ == "__main__":
    main()
