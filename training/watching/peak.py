"""What a device computes at its best: what MFU is a share of.

The makers' figures are for dense matrix products in bfloat16 with float32 accumulation, without
sparsity. Where the arithmetic or the device is another, the largest rate that a few large products
reach here is taken instead; on an H100 that is about 790 TFLOP/s where the maker says 989, so a
share of a measured peak reads higher.
"""

import re
import time

import torch

PEAK_TFLOPS = {
    "H200": 989.4,  # NVIDIA H200 datasheet: 1,979 with sparsity
    "H100 PCIe": 756.0,  # NVIDIA H100 datasheet: 1,513 with sparsity
    "H100 NVL": 835.0,  # the same: 1,671 with sparsity
    "H100": 989.4,  # the same, SXM: 1,979 with sparsity
    "A100": 312.0,  # NVIDIA A100 datasheet
    "L40S": 362.05,  # NVIDIA L40S datasheet
    "L4": 121.0,  # NVIDIA L4 datasheet: 242 with sparsity
}
"""By words of the name that CUDA gives; the first that fits counts."""

SIDES = {"cuda": 8192, "cpu": 1024}
"""Of the products that are measured: 2 n^3 operations each."""
MEASURE_S = 0.5


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations a second, and where the figure is from."""
    if device.type == "cuda" and dtype is torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, tflops in PEAK_TFLOPS.items():
            if re.search(rf"\b{part}\b", name):
                return tflops * 1e12, f"{name}'s datasheet"
    return measured_flops(device, dtype), "measured"


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of the products that fit into `MEASURE_S`, by this process's threads."""
    side = SIDES[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in "ab")
    best_s, until = float("inf"), time.perf_counter() + MEASURE_S
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * side**3 / best_s
