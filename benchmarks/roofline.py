"""What a training step could take at best on this device, and where its time goes."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Past every cache."""

KINDS = {
    "convolution": ("conv",),
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "linear": ("mm", "linear", "gemm", "nvjet", "cutlass"),
    "optimizer and average": ("adam", "foreach", "lerp", "multi_tensor"),
    "norms": ("norm",),
    "copies and layout": ("copy", "contiguous", "cat", "clone", "memcpy", "fill", "zero"),
}
"""By parts of a kernel's or operator's name; the first that fits counts, the rest is elementwise
work, or what the compiler has fused of it."""


def bandwidth(device: torch.device) -> float:
    """Bytes a second read and written by a copy, the best of some."""
    source = torch.zeros(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    best_s = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * source.nbytes / best_s


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of __init_subclass__
    """Bytes that the operators of a step read and write, each for itself: what a compiler fuses,
    and what stays in a cache, never gets to memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it has no types
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, out))
            self.num_bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return out


def traffic(step: Callable[[], Any]) -> int:
    counted = Traffic()
    with counted:
        step()
    return counted.num_bytes


def shares(step: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Of the device's busy time in a step, by kind of work; "idle": of the step's whole time."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    started = time.perf_counter()
    with profile(activities=activities) as profiled:
        step()
        synchronize(device)
    elapsed_us = (time.perf_counter() - started) * 1e6
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[kind_of(event.key)] += took
    busy = sum(spent.values())
    found = {kind: took / busy for kind, took in sorted(spent.items(), key=lambda one: -one[1])}
    return found | ({"idle": max(0.0, 1 - busy / elapsed_us)} if on_gpu else {})


def kind_of(name: str) -> str:
    lowered = name.lower()
    for kind, parts in KINDS.items():
        if any(part in lowered for part in parts):
            return kind
    return "elementwise"
