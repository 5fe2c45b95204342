"""Programs in namespaces of their own, where they may mount disks and start name servers."""

import subprocess

import pytest


def unshare(*others: str) -> list[str]:
    """What to put before a command, so that it is root in a mount namespace (and others, such as
    "net") of its own; skips the test on a machine that allows none."""
    command = ["unshare", "--map-root-user", "--mount", *(f"--{name}" for name in others)]
    probe = [*command, "mount", "-t", "tmpfs", "none", "/tmp"]
    try:
        subprocess.run(probe, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine allows no namespaces: {error}")
    return command
