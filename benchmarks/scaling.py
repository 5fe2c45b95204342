"""Training on more workers: images/s of the whole step, and what talking to each other costs.

    python -m benchmarks.scaling WORK [--workers 1 2] [--batch-size 32] [--image-size 32]
                                      [--channels 64] [--num-steps 6] [--rounds 3]

Makes WORK/corpus of the emoji. The batch is the same whatever the workers, who share it; on a CPU
each has one thread, on GPUs one GPU. Round after round all sides run in turn, data included:

    1 ddp              one process
    2 ddp, 2 fsdp ...  processes of torch.distributed, gloo on a CPU, nccl on GPUs
    2 silent           as ddp, but gradients stay where they are: the step without communication

Prints images/s, the speed-up over one worker, and the share of the step that waits for others: what
ddp takes longer than the silent side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.machine import processor
from benchmarks.result_corpus import build
from infra.cluster import Workers
from pipeline.corpus import read_manifest
from training.config import Config, ParallelConfig, UNetConfig
from training.loop import Trainer
from training.parallel import Worker
from training.record import RunRecord
from training.streaming.ahead import prefetched

WARM_UP = 2
"""Steps before the clock runs."""
AS_WORKER = (sys.executable, "-m", "benchmarks.scaling", "--as-worker")


def main() -> None:
    arguments = parse()
    corpus, _ = build(arguments.work / "corpus", emoji_only=True)
    sides = [(1, "ddp")]
    for num in arguments.workers:
        sides += [(num, mode) for mode in ("ddp", "fsdp", "silent") if num > 1]
    rates: dict[tuple[int, str], list[float]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for num, mode in sides:
            rates[num, mode].append(measure(arguments, str(corpus), num, mode))
    print(f"{processor()}, {os.cpu_count()} cores; {accelerators()}")
    print(
        f"unet of {arguments.channels} channels, {arguments.image_size} pixels, "
        f"batches of {arguments.batch_size}; medians of {arguments.rounds} rounds"
    )
    alone = statistics.median(rates[1, "ddp"])
    for (num, mode), found in rates.items():
        rate = statistics.median(found)
        line = f"{num} {mode:7} {rate:8.2f} images/s, {rate / alone:.2f}x of one worker"
        if mode == "ddp" and num > 1:
            silent = statistics.median(rates[num, "silent"])
            line += f", {100 * max(0.0, 1 - rate / silent):.1f}% of the step communication"
        print(line)


def measure(arguments: argparse.Namespace, root: str, num_workers: int, mode: str) -> float:
    """Images/s of one side in processes of its own."""
    config = make_config(arguments, root, mode)
    with tempfile.TemporaryDirectory() as folder:
        crew = [
            subprocess.Popen(
                [
                    *AS_WORKER,
                    *(str(rank), str(num_workers), mode, f"file://{folder}/rendezvous"),
                    config.model_dump_json(),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(num_workers)
        ]
        said = [worker.communicate()[0] for worker in crew]
    assert all(worker.returncode == 0 for worker in crew), said
    return config.batch_size * (config.num_steps - WARM_UP) / float(json.loads(said[0]))


def make_config(arguments: argparse.Namespace, root: str, mode: str) -> Config:
    return Config(
        root=root,
        run=str(arguments.work / "run"),  # where nothing is written
        encoder="Carrara-S/emoji_clipart",
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        num_steps=arguments.num_steps + WARM_UP,
        unet=UNetConfig(channels=arguments.channels, dropout=0.0),
        parallel=ParallelConfig(mode="fsdp" if mode == "fsdp" else "ddp"),
        workers=Workers(local=True),
    )


def work(rank: int, num_workers: int, mode: str, rendezvous: str, config: Config) -> None:
    """One worker of a side; says the seconds that its steps took."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    if num_workers > 1:
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=num_workers)
    digest = read_manifest(config.root).digest
    record = RunRecord(config=config, corpus_digest=digest, encoder_digest="")
    trainer = Trainer(record, Worker.current(device))
    with prefetched(trainer.stream, range(config.num_steps), trainer.positions) as batches:
        for step in range(config.num_steps):
            if step == WARM_UP:
                wait_for_all(trainer.worker)
                started = time.perf_counter()
            with silence(trainer.network) if mode == "silent" else nullcontext():
                trainer.train_step(next(batches))
        wait_for_all(trainer.worker)
        print(json.dumps(time.perf_counter() - started))
    if num_workers > 1:
        dist.destroy_process_group()


def silence(network: nn.Module) -> AbstractContextManager[None]:
    assert isinstance(network, DistributedDataParallel)
    return network.no_sync()


def wait_for_all(worker: Worker) -> None:
    if worker.device.type == "cuda":
        torch.cuda.synchronize(worker.device)
    if worker.num_workers > 1:
        dist.barrier()


def accelerators() -> str:
    if not torch.cuda.is_available():
        return "no GPU"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("work", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-worker"]:
        rank, num, mode, rendezvous, config = sys.argv[2:]
        work(int(rank), int(num), mode, rendezvous, Config.model_validate_json(config))
    else:
        main()
