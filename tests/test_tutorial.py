"""The tutorial, carried out as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    # Job control, so that `kill %1` means the server; which must not outlive a step that fails.
    script = "set -euxmo pipefail\ntrap 'kill $(jobs -p) || true' EXIT\n" + "".join(blocks)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for left in ("run/metrics.jsonl", "samples.png", "cats.png", "curated/manifest.json"):
        assert (tmp_path / left).exists(), left
    told = re.findall(r"^```text\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    said = [_without_times(line) for line in done.stdout.splitlines()]
    for line in "".join(told).splitlines():
        assert _without_times(line) in said, line


def _without_times(line: str) -> list[str]:
    """Its words; what comes in equal numbers comes in any order."""
    return sorted(re.findall(r"[^\s,()]+", re.sub(r"in [\d.]+ s", "", line)))
