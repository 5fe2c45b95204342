"""The machine: a driver that torch knows nothing of, disks that are full, and what to do."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from infra.checks import container, machine
from infra.checks.finding import Subject

SUBJECT = Subject(None, encoder="", egress_url="")


def put_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_every_line_that_is_not_well_says_what_to_do() -> None:
    findings = {one.check: one for one in machine.check(SUBJECT)}
    assert {"cpu", "memory", "disk", "open files", "gpu"} <= findings.keys()
    assert all(one.advice for one in findings.values() if one.state != "ok")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_gpu_that_torch_does_not_see_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, monkeypatch, "echo 'H100, 570.1, 81559 MiB, 4 MiB, 30'")
    gpu = {one.check: one for one in machine.check(SUBJECT)}["gpu"]
    assert gpu.state == "broken"
    assert gpu.found.startswith("H100, driver 570.1, 4 MiB used of 81559 MiB, 30 C; but torch")


def test_a_driver_that_fails_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, monkeypatch, "echo 'Driver/library version mismatch'; exit 18")
    gpu = {one.check: one for one in machine.check(SUBJECT)}["gpu"]
    assert (gpu.state, gpu.found) == ("broken", "Driver/library version mismatch")


@pytest.mark.parametrize(("free", "state"), [(3, "broken"), (6, "warning"), (60, "ok")])
def test_a_full_disk_is_broken_and_a_nearly_full_one_a_warning(
    free: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("/"))(100 * 10**9, (100 - free) * 10**9, free * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert {one.check: one for one in machine.check(SUBJECT)}["disk"].state == state


def test_a_container_that_is_nearly_full_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine around it has."""
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("1900000000\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(container, "CGROUP", tmp_path)
    findings = {one.check: one for one in machine.check(SUBJECT)}
    assert findings["memory"].state == "warning"
    assert findings["memory"].found == "0.1 GB free of 2.0 GB"
    assert findings["cpu"].found.startswith("0.5 cores for this container, of ")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
@pytest.mark.parametrize(("total_mb", "state"), [(64, "warning"), (10**6, "ok")])
def test_shared_memory_too_small_for_rays_objects_is_a_warning(
    total_mb: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB are what Docker gives."""
    usage = type(shutil.disk_usage("/"))(total_mb * 10**6, 0, total_mb * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    shm = {one.check: one for one in machine.check(SUBJECT)}["/dev/shm"]
    assert shm.state == state
    assert state == "ok" or "--shm-size" in shm.advice
