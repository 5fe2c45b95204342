"""Clock, peak and the figures worked out from them."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from training.watching import peak
from training.watching.clock import Clock, CommunicationTimer, Lap, Wait
from training.watching.console import note
from training.watching.peak import measured_flops, peak_flops
from training.watching.physics import Physics, bound_by, memory_bytes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def lap(waits_s: dict[Wait, float] | None = None) -> Lap:
    none: dict[Wait, float] = {"data": 0.0, "checkpoint": 0.0, "logging": 0.0}
    return Lap(10.0, none | (waits_s or {}))


def physics(**changes: float | None) -> Physics:
    settings: dict[str, Any] = {"flops_per_image": 2e9, "peak_flops": 1e12}
    settings |= {"worker_hour_dollars": 3.6} | changes
    return Physics(batch_size=100, num_workers=4, device=torch.device("cpu"), **settings)


@pytest.mark.parametrize("device", DEVICES)
def test_clock_tells_waits_from_work(device: str) -> None:
    clock = Clock(torch.device(device))
    with clock.spent("data"):
        time.sleep(0.05)
    time.sleep(0.05)
    if device == "cuda":
        torch.cuda.synchronize()
    first = clock.lap()
    assert first.seconds >= 0.1
    assert 0.04 < first.waits_s["data"] <= first.seconds - 0.04
    assert first.percent("checkpoint") == 0
    assert first.percent("communication") is None
    assert clock.lap().waits_s["data"] == 0


def test_lone_worker_waits_for_no_other() -> None:
    assert CommunicationTimer(torch.nn.Linear(1, 1), 1).seconds_a_step() == 0
    assert CommunicationTimer(torch.nn.Linear(1, 1), 2).seconds_a_step() is None


def test_figures_follow_from_their_definitions() -> None:
    figures = physics().of(20, lap({"data": 1.5, "communication": 0.5}))
    assert figures["images_per_s"] == 200  # 20 steps of 100 in 10 s
    assert figures["mfu_percent"] == 10  # 200 images of 2 GFLOP, of 4 TFLOP/s
    assert figures["stall_percent"] == 15
    assert figures["communication_percent"] == 5
    # 4 workers at 0.001 dollars a second, 5000 seconds for a million images
    assert figures["dollars_per_million_images"] == 20
    assert figures["bound_by"] == "data"


def test_without_a_price_there_are_no_dollars() -> None:
    assert physics(worker_hour_dollars=0).of(1, lap())["dollars_per_million_images"] is None


def test_longest_wait_bounds_the_run_if_it_is_worth_naming() -> None:
    assert bound_by(lap({"data": 0.9, "logging": 0.9})) == "compute"
    assert bound_by(lap({"data": 2.0, "communication": 3.0})) == "communication"
    assert bound_by(lap({"checkpoint": 5.0})) == "checkpoint"


@pytest.mark.parametrize("peak_flops", [None, 1e11])
def test_where_the_peak_is_unknown_or_too_low_there_is_no_mfu(peak_flops: float | None) -> None:
    """200 images of 2 GFLOP a second are exactly what four devices of 0.1 TFLOP/s do."""
    figures = physics(peak_flops=peak_flops).of(21, lap())
    assert figures["mfu_percent"] is None
    assert figures["images_per_s"] == 210
    assert physics(peak_flops=1e11).of(20, lap())["mfu_percent"] == 100


CPUS = [
    ("avx2 fma", torch.float32, 32),
    ("avx2 fma", torch.bfloat16, 32),
    ("avx2 fma avx512f", torch.float32, 64),
    ("avx2 fma avx512f", torch.bfloat16, 64),
    ("avx2 fma avx512f avx512_bf16", torch.bfloat16, 128),
    ("avx2 fma avx512f avx512_bf16 amx_bf16", torch.bfloat16, 1024),
    ("avx2 fma avx512f avx512_bf16 amx_bf16", torch.float32, 64),
]


@pytest.mark.parametrize(("flags", "dtype", "a_cycle"), CPUS)
def test_an_x86_core_does_what_its_instructions_say(
    flags: str, dtype: torch.dtype, a_cycle: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_cpu(tmp_path, monkeypatch, f"flags\t\t: fpu sse {flags}\n")
    known = peak_flops(torch.device("cpu"), dtype)
    assert known is not None
    assert known[0] == torch.get_num_threads() * 6.2e9 * a_cycle
    assert f"{a_cycle} FLOP a cycle" in known[1]


@pytest.mark.parametrize(
    ("driver", "clock_hz"), [("intel_pstate", 4.1e9), ("amd-pstate-epp", 4.1e9), ("other", 6.2e9)]
)
def test_a_clock_counts_where_it_is_the_largest(
    driver: str, clock_hz: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_cpu(tmp_path, monkeypatch, "flags : fma\n")
    for number, khz in enumerate((3_500_000, 4_100_000)):
        folder = tmp_path / "clocks" / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(f"{khz}\n")
        (folder / "scaling_driver").write_text(f"{driver}\n")
    known = peak_flops(torch.device("cpu"), torch.float32)
    assert known is not None
    assert known[0] == torch.get_num_threads() * clock_hz * 32


@pytest.mark.parametrize("cpuinfo", ["Features : fp asimd sve\n", "flags : fpu sse2\n", None])
def test_of_another_processor_no_peak_is_known(
    cpuinfo: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_cpu(tmp_path, monkeypatch, cpuinfo)
    assert peak_flops(torch.device("cpu"), torch.float32) is None


def describe_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None) -> None:
    if cpuinfo is not None:
        (folder / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(peak, "CPUINFO", folder / "cpuinfo")
    monkeypatch.setattr(peak, "CLOCKS", folder / "clocks")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_product_here_is_faster_than_the_peak(device: str, dtype: torch.dtype) -> None:
    measured = measured_flops(torch.device(device), dtype)
    assert measured > 1e8
    known = peak_flops(torch.device(device), dtype)
    if known is None:
        pytest.skip("no peak is known of this device")
    assert measured < known[0]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
    ],
)
def test_datasheet_is_found_by_the_words_of_a_name(
    name: str, tflops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    half, full = (
        peak_flops(torch.device("cuda"), dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    assert half == (tflops * 1e12, f"{name}'s datasheet")
    assert full == (tflops * 5e11, f"{name}'s datasheet, TF32")


def test_of_a_gpu_of_another_name_no_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA L400")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) is None


def test_memory_is_that_of_this_process() -> None:
    assert 1e7 < memory_bytes(torch.device("cpu")) < 1e12


def test_console_line_has_what_is_known() -> None:
    line: dict[str, Any] = {"loss": 0.5, "images_per_s": 1234.5, "stall_percent": 2.0}
    assert note(line) == "loss 0.5000, 1,234 images/s, stall 2%"
    line |= {"held_out_loss": 0.6, "mfu_percent": 41.2, "bound_by": "data"}
    assert note(line | {"dollars_per_million_images": 1.5}) == (
        "loss 0.5000, held out 0.6000, 1,234 images/s, MFU 41%, stall 2%, $1.50 a million, "
        "bound by data"
    )
