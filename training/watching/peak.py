"""What a device computes at its best: what MFU is a share of.

Never less than the device can do, so that MFU never flatters, and never measured, so that other
work on the machine has no part in it: of a GPU the maker's figure for dense products, of an x86
processor cores x clock x operations a cycle. Where neither can be told there is no MFU.
"""

import re
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from infra.planning.gpus import PEAK_TFLOPS

CYCLE_FLOPS = {
    torch.float32: {"avx512f": 64, "fma": 32},
    torch.bfloat16: {"amx_bf16": 1024, "avx512_bf16": 128, "avx512f": 64, "fma": 32},
}
"""Of a core, by a flag of /proc/cpuinfo; the first that is there counts. Two units, each with a
multiplication and an addition in 8 (AVX2) or 16 lanes of float32 or pairs of bfloat16 (Intel 64 and
IA-32 Optimization Manual, "Intel Advanced Vector Extensions 512"); a tile of AMX is 16 x 16 x 32
multiplications and additions in 16 cycles (the same, "Intel AMX"). Processors with one such unit,
or with units of half the width (Zen 4), do half of it: their MFU reads low."""

CPUINFO = Path("/proc/cpuinfo")
CLOCKS = Path("/sys/devices/system/cpu")
TELLING_DRIVERS = ("intel_pstate", "intel_cpufreq", "amd-pstate", "amd-pstate-epp")
"""Those by which the kernel's largest clock is the processor's, its short-lived boost included."""
HIGHEST_CLOCK_HZ = 6.2e9
"""Of any x86 processor (Intel Core i9-14900KS, boosted): taken where the kernel doesn't tell, as in
most virtual machines. Servers reach 3.5 to 5 GHz: their MFU reads low."""

SIDES = {"cuda": 8192, "cpu": 512}
"""Of the products that are measured: 2 n^3 operations each. On a CPU some milliseconds, so that on
a busy machine a few of them run undisturbed."""
MEASURE_S = 0.5


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str] | None:
    """Operations a second of this process on it, and where the figure is from; None where no peak
    is known."""
    if device.type == "cuda":
        return _gpu_peak(torch.cuda.get_device_name(device), dtype)
    return _cpu_peak(torch.get_num_threads(), dtype)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of the products that fit into `MEASURE_S`, by this process's threads: less than the
    peak, and on a busy machine less than the device gives when alone."""
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


def _gpu_peak(name: str, dtype: torch.dtype) -> tuple[float, str] | None:
    for part, tflops in PEAK_TFLOPS.items():
        if re.search(rf"\b{part}\b", name):
            if dtype is torch.bfloat16:
                return tflops * 1e12, f"{name}'s datasheet"
            # As TF32, which all of them do at half the rate; without it float32 is slower still.
            return tflops * 0.5e12, f"{name}'s datasheet, TF32"
    return None


def _cpu_peak(num_cores: int, dtype: torch.dtype) -> tuple[float, str] | None:
    flags = _cpu_flags()
    for flag, flops in CYCLE_FLOPS[dtype].items():
        if flag in flags:
            clock_hz = _clock_hz()
            source = f"{num_cores} cores x {clock_hz / 1e9:.3g} GHz x {flops} FLOP a cycle ({flag})"
            return num_cores * clock_hz * flops, source
    return None


def _cpu_flags() -> Iterable[str]:
    """Of the first processor; none where it is no x86 or no Linux."""
    if not CPUINFO.exists():
        return ()
    lines = CPUINFO.read_text().splitlines()
    return next((line.split(":")[1].split() for line in lines if line.startswith("flags")), ())


def _clock_hz() -> float:
    clocks = [
        1e3 * int((folder / "cpuinfo_max_freq").read_text())
        for folder in CLOCKS.glob("cpu[0-9]*/cpufreq")
        if (folder / "scaling_driver").read_text().strip() in TELLING_DRIVERS
    ]
    return max(clocks, default=HIGHEST_CLOCK_HZ)
