"""A disk that fills up: a tmpfs, in a mount namespace of a program's own.

    unshare --map-root-user --mount python -m tests.pipeline.full_disk FOLDER STEP ARGUMENTS

puts all of FOLDER/held on a disk at FOLDER/disk and gives `carrara` the arguments, again and again:
the first time with STEP bytes of room, each time with so many more, until it succeeds. What is on
the disk then is copied to FOLDER/done; what became of each attempt is told as JSON.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.pipeline.downloads import REPOSITORY
from tests.pipeline.namespaces import unshare

MAX_ATTEMPTS = 50


@dataclass(frozen=True)
class Attempt:
    code: int
    said: str
    """On stderr."""
    files: dict[str, str]
    """sha256 of every file on the disk afterwards, hidden ones too."""


def fill(folder: Path, step_bytes: int, arguments: Sequence[str]) -> list[Attempt]:
    """All attempts; the last is the one that succeeded."""
    (folder / "held").mkdir(exist_ok=True)
    (folder / "disk").mkdir()
    program = [sys.executable, "-m", "tests.pipeline.full_disk", str(folder), str(step_bytes)]
    command = [*unshare(), *program, *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Attempt(**attempt) for attempt in json.loads(done.stdout)]


def check_told_and_kept(
    attempts: Sequence[Attempt], *states: Mapping[str, str], besides: tuple[str, ...] = ()
) -> None:
    """That each attempt but the last said in one line what is full, left under no name what none of
    the `states` has there, and kept what it found of the last of them.

    `besides`: parts of the paths where a command keeps its own notes, or times.
    """
    finished: set[str] = set()
    for attempt in attempts[:-1]:
        assert attempt.code in (1, 2)
        (line,) = (line for line in attempt.said.splitlines() if line.startswith("carrara: "))
        assert "can't be written" in line
        assert "No space left on device" in line
        assert "/disk/" in line
        assert "Traceback" not in attempt.said
        assert not [path for path in attempt.files if path.endswith(".partial")]
        for path, sha256 in attempt.files.items():
            if not any(part in path for part in besides):
                assert sha256 in [state.get(path) for state in states], path
        before, whole = finished, attempt.files.items() & states[-1].items()
        finished = {path for path, _ in whole}
        assert before <= finished


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main(folder: Path, step_bytes: int, arguments: Sequence[str]) -> None:
    disk = folder / "disk"
    _mount(disk, "rw")
    shutil.copytree(folder / "held", disk, dirs_exist_ok=True)
    about = os.statvfs(disk)
    num_bytes = (about.f_blocks - about.f_bfree) * about.f_frsize
    attempts: list[Attempt] = []
    while not attempts or attempts[-1].code:
        assert len(attempts) < MAX_ATTEMPTS, attempts[-1].said
        num_bytes += step_bytes
        _mount(disk, f"remount,size={num_bytes}")
        attempts.append(_attempt(disk, arguments))
    shutil.copytree(disk, folder / "done")
    print(json.dumps([asdict(attempt) for attempt in attempts]))


def _mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=True)


def _attempt(disk: Path, arguments: Sequence[str]) -> Attempt:
    import carrara

    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = carrara.run_command(arguments)
    return Attempt(code, said.getvalue(), digests(disk))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
