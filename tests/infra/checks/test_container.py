"""A container's limits, as both versions of control groups lay them out."""

from pathlib import Path

import pytest

from infra.checks import container

GIB = 2**30
VERSION_1 = {
    "memory/memory.limit_in_bytes": f"{8 * GIB}\n",
    "memory/memory.usage_in_bytes": f"{7 * GIB}\n",
    "memory/memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {2 * GIB}\n",
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
}
VERSION_2 = {
    "memory.max": f"{8 * GIB}\n",
    "memory.current": f"{7 * GIB}\n",
    "memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
    "cpu.max": "150000 100000\n",
}
NO_LIMITS: tuple[dict[str, str], ...] = (
    {},
    {"memory.max": "max\n", "memory.current": "5\n", "cpu.max": "max 100000\n"},
    {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
)


@pytest.mark.parametrize("files", [VERSION_1, VERSION_2])
def test_limits_and_what_is_left_of_them(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(files, tmp_path, monkeypatch)
    assert container.memory_bytes() == (8 * GIB, 3 * GIB)
    assert container.num_cores() == 1.5


@pytest.mark.parametrize("files", NO_LIMITS)
def test_without_a_limit_there_is_none(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(files, tmp_path, monkeypatch)
    assert container.memory_bytes() is None
    assert container.num_cores() is None


def lay_out(files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "CGROUP", folder)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
