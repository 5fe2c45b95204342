"""What names resolve to, how often they are looked up, and what a name server can do to a list."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.namespaces import unshare

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What name_server.py says, in a network namespace; some machines allow no such."""
    resolver = tmp_path_factory.mktemp("names") / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.53\n")
    script = Path(__file__).with_name("name_server.py")
    run = f"mount --bind {resolver} /etc/resolv.conf && exec {sys.executable} {script}"
    done = subprocess.run(
        [*unshare("net"), "sh", "-c", run],
        cwd=ROOT,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            # glibc's own: five seconds for a silent name server, twice, and closing waits for it.
            "RES_OPTIONS": "timeout:2 attempts:1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("scenario", ["plain", "plain, no robots.txt"])
def test_many_urls_of_a_host_take_one_lookup(told: dict[str, Any], scenario: str) -> None:
    assert told[scenario]["reasons"] == {"fetched": 60}
    assert told[scenario]["asked"] == 1


def test_a_name_that_is_not_there_is_asked_for_once(told: dict[str, Any]) -> None:
    assert told["missing"]["reasons"] == {"dns": 60}
    assert told["missing"]["asked"] == 1


def test_a_name_server_that_fails_is_asked_again(told: dict[str, Any]) -> None:
    assert told["shaky"]["reasons"] == {"fetched": 5}
    assert told["shaky"]["asked"] > 2


@pytest.mark.parametrize("scenario", ["inside", "metadata", "both", "rebound"])
def test_a_name_that_leads_inside_is_refused(told: dict[str, Any], scenario: str) -> None:
    """Also one with a public address beside it, and one whose address changes in between."""
    assert told[scenario]["reasons"] == {"refused address": 1}


def test_names_that_are_never_answered_time_out_and_hold_nothing_up(told: dict[str, Any]) -> None:
    assert told["silent"]["reasons"] == {"dns": 8, "fetched": 8}
    assert told["silent"]["first"] == ["fetched"] * 8
