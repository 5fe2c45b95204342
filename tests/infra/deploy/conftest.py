"""The deployment files, and the tools that check them."""

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def deploy() -> Path:
    return REPOSITORY / "infra" / "deploy"


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_tool("hadolint", path, ...) runs a program of this environment, from the root."""

    def run(
        name: str, *args: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        own = Path(sysconfig.get_path("scripts")) / name
        command = [str(own) if own.exists() else name, *map(str, args)]
        return subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=env
        )

    return run
