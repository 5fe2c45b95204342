"""Checkpoints: how long the step stands still for one, and how long it takes to write.

    python -m benchmarks.checkpoint WORK [--num-million 50] [--rounds 3] [--width 4096]

WORK is any folder or URL. The state is that of a network of so many million parameters: weights,
their average and AdamW's two moments, 16 bytes a parameter. Each round writes one checkpoint
through the run's own writer, one step after the other standing still for its copy alone.

Prints the medians of the copy and of the whole write, their ratio, and the rates.
"""

import argparse
import statistics
import time

import torch

from benchmarks.machine import processor
from infra import storage
from training.checkpoint import Tensors
from training.config import Config
from training.parallel import WHOLE, Worker
from training.record import RunRecord
from training.writer import CheckpointWriter


def main() -> None:
    arguments = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = record_in(storage.join(storage.absolute(arguments.work), "run"))
    writer = CheckpointWriter(record, Worker(0, 1, device), WHOLE)
    parts = state(arguments.num_million * 1_000_000, arguments.width, device)
    size = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())
    copies, writes = [], []
    for step in range(1, arguments.rounds + 2):  # the first also gets the memory
        started = time.perf_counter()
        writer.start(step, parts)
        copies.append(time.perf_counter() - started)
        writer.finish()
        writes.append(time.perf_counter() - started)
    copy_s, write_s = statistics.median(copies[1:]), statistics.median(writes[1:])
    print(f"{processor()}; state on {device.type}, {size / 1e9:.2f} GB, to {arguments.work}")
    print(f"first copy, memory included  {copies[0]:8.3f} s")
    print(f"copy: the step stands still  {copy_s:8.3f} s, {size / copy_s / 1e9:.2f} GB/s")
    print(f"written and committed after  {write_s:8.3f} s, {size / write_s / 1e9:.2f} GB/s")
    print(f"ratio                        {write_s / copy_s:8.1f}")
    storage.remove(record.config.run)


def record_in(run: str) -> RunRecord:
    config = Config(root="unused", run=run, keep_last=1)
    return RunRecord(config=config, corpus_digest="", encoder_digest="")


def state(num_parameters: int, width: int, device: torch.device) -> dict[str, Tensors]:
    names = [f"layers.{i}.weight" for i in range(max(1, num_parameters // width**2))]

    def weights(suffix: str = "") -> Tensors:
        return {name + suffix: torch.randn(width, width, device=device) for name in names}

    moments = weights("/exp_avg") | weights("/exp_avg_sq")
    return {"model": weights(), "ema": weights(), "optimizer": moments}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("work")
    parser.add_argument("--num-million", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=4096)
    return parser.parse_args()


if __name__ == "__main__":
    main()
