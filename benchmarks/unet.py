"""Our `unet` against diffusers' UNet2DConditionModel at equal FLOPs: images a second of training.

    python -m benchmarks.unet WORK               size S at 64 pixels on a GPU, at 32 on a CPU
    python -m benchmarks.unet WORK --no-compile --num-rounds 1 --seconds 1 --channels 16     a try

The whole step of both: the same pictures and captions from the same shards, forward, backward,
clipping, AdamW, moving average. diffusers' channels are chosen so that both networks cost the same
FLOPs an image (within 3%). Each then takes the best of its own settings: bfloat16 or float32,
channels-last or not (ours always is), fused attention or plain (ours chooses by itself), compiled
or not; the two take many short turns, so that what else the machine does hits both. With it: MFU,
the roofline and where the step's time goes. On a GPU also uvit's MFU, in sizes S, B and L.

On a CPU compiling takes minutes for each side; --no-compile leaves it out.
"""

import argparse
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.diffusers_unet import DiffusersTrainer, Settings, channels_of_equal_flops
from benchmarks.machine import processor
from benchmarks.result_corpus import build
from benchmarks.roofline import bandwidth, shares, traffic
from benchmarks.unet_sides import NUM_STEPS, Make, Side, best_settings, our_trainer, taking_part
from infra.cluster import Workers
from training.config import SIZES, Config
from training.data import make_stream
from training.loop import Trainer
from training.network import flops_per_image
from training.text import make_captions
from training.watching.peak import measured_flops, peak_flops

NUM_TEXT_TOKENS = 16
"""That FLOPs are counted with."""
TOLERANCE = 0.03
"""Of equal FLOPs."""
TARGET = 1.2
PASSES = {"L": 64, "XL": 32}
"""Pictures in one pass of the larger sizes, to stay within 80 GB."""


def main() -> None:
    arguments = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus, _ = build(arguments.work, emoji_only=True)
    config = make_config(arguments, corpus, "unet", arguments.size)
    captions = make_captions(config, device)
    captions.remember(make_stream(config).captions())
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
    best = {
        name: best_settings(
            name, make, config, device, arguments.seconds, compiles=not arguments.no_compile
        ).settings
        for name, make in makers.items()
    }
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
    parser.add_argument("--num-rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a side in a round")
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


def take_turns(
    sides: dict[str, Side[Any]], arguments: argparse.Namespace
) -> dict[str, list[float]]:
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
    peaks: dict[bool, tuple[float, str] | None]
    """Operations a second in float32 and bfloat16, and where the figure is from; if it is known."""
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
    name: str, side: Side[Any], settings: Settings, speed: float, flops: int, rates: Rates
) -> None:
    """MFU, the roofline, and what bounds the step."""
    compute_s = flops * side.batch_size / rates.products[settings.bfloat16]
    step_s = side.batch_size / speed
    print(f"\n{name}: {speed:.2f} images/s  ({settings})")
    if (known := rates.peaks[settings.bfloat16]) is not None:
        peak, source = known
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
