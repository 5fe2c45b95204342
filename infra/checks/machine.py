"""The machine: cores, memory, shared memory, disk, open files, GPU and driver."""

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra.checks import container
from infra.checks.finding import Finding, Subject, broken, ok, warning

GB = 10**9
LOW_MEMORY = 4 * GB
"""A worker with torch and an encoder takes about 1 GB, the driver and Ray itself another 2."""
LOW_DISK = 10 * GB
FULL_SHARE = 0.95
"""Ray's local_fs_capacity_threshold: on a fuller disk it refuses to spill objects."""
LOW_SHM_SHARE = 0.3
"""Ray's object store takes that share of the memory, from /dev/shm where it fits there."""
LOW_OPEN_FILES = 4096
"""A download has 64 connections a worker open, Ray some hundreds of its own."""


def check(_subject: Subject) -> Iterator[Finding]:
    yield _cpu()
    yield _memory()
    if Path("/dev/shm").is_dir():
        yield _shared_memory()
    yield _disk(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    yield _open_files()
    yield from _gpus()


def _cpu() -> Finding:
    has_affinity = hasattr(os, "sched_getaffinity")
    there = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    num = min(there, container.num_cores() or there)
    busy = os.getloadavg()[0]
    share = "" if num == there else f" for this container, of {there}"
    found = f"{num:g} cores{share}, {busy:.1f} busy over the last minute"
    if busy > 2 * there:
        return warning("cpu", found, "other work runs here: everything takes as many times longer")
    return ok("cpu", found)


def _memory() -> Finding:
    total, available = _memory_bytes()
    found = f"{available / GB:.1f} GB free of {total / GB:.1f} GB"
    if available < LOW_MEMORY:
        advice = "close other programs, or lower workers.num_workers, batch_size and cache_size_mb"
        return warning("memory", found, advice)
    return ok("memory", found)


def _memory_bytes() -> tuple[int, int]:
    """Total and available, of the machine or of the container, where that has less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = available = os.sysconf("SC_PHYS_PAGES") * page
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = container.memory_bytes()
    if limit is not None and limit[0] < total:
        total, available = limit[0], min(available, limit[1])
    return total, available


def _shared_memory() -> Finding:
    usage = shutil.disk_usage("/dev/shm")
    found = f"{usage.free / GB:.1f} GB free of {usage.total / GB:.1f} GB"
    if usage.total < LOW_SHM_SHARE * _memory_bytes()[0]:
        return warning(
            "/dev/shm",
            f"{found}, less than Ray's object store wants (30% of the memory)",
            "in a container: `docker run --shm-size=...`; else Ray keeps its objects on the disk",
        )
    return ok("/dev/shm", found)


def _disk(folder: str) -> Finding:
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GB:.1f} GB free of {usage.total / GB:.1f} GB under {folder}"
    used = 1 - usage.free / usage.total
    if used > FULL_SHARE:
        advice = f"Ray stops storing objects on a disk {FULL_SHARE:.0%} full: make room"
        return broken("disk", f"{found}, {used:.0%} full", f"{advice}, or set TMPDIR elsewhere")
    if usage.free < LOW_DISK:
        return warning("disk", found, "make room, or set TMPDIR to a larger disk")
    return ok("disk", found)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LOW_OPEN_FILES:
        return warning("open files", f"{soft} at once", "ulimit -n 65536, before Ray is started")
    return ok("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} at once")


def _gpus() -> Iterator[Finding]:
    """What the driver says, and whether torch agrees."""
    found = _nvidia_smi()
    if found is None:
        yield ok("gpu", "no NVIDIA driver: encoders and training run on the CPU")
        return
    if isinstance(found, Finding):
        yield found
        return
    import torch

    if not torch.cuda.is_available():
        yield broken(
            "gpu",
            f"{'; '.join(found)}; but torch {torch.__version__} sees none",
            "install a torch built for CUDA, no newer than the driver knows (`nvidia-smi` names "
            "its CUDA version), and check CUDA_VISIBLE_DEVICES",
        )
        return
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    for line in found:
        told = f"{line}; compute capability {capability}, torch's CUDA is {torch.version.cuda}"
        yield ok("gpu", told)


def _nvidia_smi() -> list[str] | Finding | None:
    """A line a GPU; a finding where the driver is there and doesn't work; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,memory.used,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return broken("gpu", "nvidia-smi does not answer", "reboot: the driver or a GPU hangs")
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        advice = "reinstall the NVIDIA driver, or reboot after its update"
        return broken("gpu", said[0] if said else "nvidia-smi fails", advice)
    return [_gpu_line(line) for line in done.stdout.splitlines() if line.strip()]


def _gpu_line(line: str) -> str:
    name, driver, total, used, temperature = (part.strip() for part in line.split(","))
    return f"{name}, driver {driver}, {used} used of {total}, {temperature} C"
