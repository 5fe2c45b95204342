"""The rehearsal itself, in namespaces of its own: jobs, each struck by a fault, and its outcome.

    unshare --net --mount --pid --fork --mount-proc python -m infra.drill.inside FOLDER CHAINS

CHAINS is JSON: lists of [job, fault]. Every chain starts from the list of URLs; each job's output
is held against that of the same job in an undisturbed chain. Prints a JSON object a job.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.drill.faults import FAULTS
from infra.drill.jobs import JOBS, PICTURES_PORT, Place, lay_out
from infra.drill.machines import (
    DASHBOARD_PORT,
    OUTSIDE,
    Machine,
    environment_of_machines,
    lay_cables,
    make_machines,
)
from infra.drill.object_store import serve_s3
from infra.errors import StorageError

BUCKET = "s3://drill"
NUM_MACHINES = 3
REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 600.0
JOB_TIMEOUT_S = 900.0
INTO_IT_S = 3.0
"""How far into a job that shows nothing before its end it is struck."""
POLL_EVERY_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    job: str
    fault: str
    machine: str
    """That was struck; "" where none was, or the job ended before."""
    exit_code: int
    submitted: int
    """How often."""
    seconds: float
    same: bool
    """It ended well, and left the bytes that it leaves undisturbed."""
    outcome: str


def main() -> None:
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    folder, chains = Path(sys.argv[1]), json.loads(sys.argv[2])
    # `ip netns` keeps its names there; the real one may not be ours to write to.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    lay_cables()
    with serve_s3(OUTSIDE, folder / "s3") as endpoint, _pictures():
        environment = environment_of_machines(folder, endpoint)
        os.environ.update(environment)
        machines = make_machines(folder, NUM_MACHINES, environment)
        # One after the other: a Ray that does not start within 30 s gives up and starts anew.
        _make_bucket()
        for num, machine in enumerate(machines, 1):
            machine.turn_on()
            _wait_for(machines[:num])
        _rehearse(folder, machines, chains)


def _end_with_the_command() -> None:
    """This is the first process of its namespaces: when it ends, all in them do. Whoever started
    it holds the other end of its stdin, until the end."""
    sys.stdin.read()
    os._exit(1)


def _rehearse(folder: Path, machines: Sequence[Machine], chains: list[list[list[str]]]) -> None:
    undisturbed = Place(BUCKET, "undisturbed")
    jobs = [job for job in JOBS if any(job == name for chain in chains for name, _ in chain)]
    for job in jobs:
        _tell(_carry_out(folder, machines, undisturbed, job, None))
    for number, chain in enumerate(chains):
        place = Place(BUCKET, f"chain{number}")
        for job, fault in chain:
            _tell(_carry_out(folder, machines, place, job, fault, undisturbed))
            _wait_for(machines)


def _make_bucket() -> None:
    """With what all jobs read; the server answers before it can store."""
    import s3fs

    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            s3fs.S3FileSystem().mkdirs(BUCKET, exist_ok=True)
            lay_out(BUCKET)
        except (OSError, StorageError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def _carry_out(
    folder: Path,
    machines: Sequence[Machine],
    place: Place,
    job: str,
    fault: str | None,
    undisturbed: Place | None = None,
) -> Outcome:
    start = time.monotonic()
    log = folder / f"{place.name}-{job}.log"
    victim, timer = None, None
    with log.open("w") as file:
        submission = subprocess.Popen(
            [str(REPOSITORY / "infra/submit.sh"), *place.command(job)],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"RAY_API_SERVER_ADDRESS": _dashboard(machines)},
        )
        if fault is not None and _wait_until_under_way(submission, machines, place, job):
            victim, timer = FAULTS[fault].strike(machines)
        exit_code = submission.wait(JOB_TIMEOUT_S)
    if timer is not None:
        timer.join()
    elif victim is not None and fault is not None:
        FAULTS[fault].end(victim)
    same, outcome = _judged(place, job, exit_code, undisturbed, is_struck=victim is not None)
    return Outcome(
        job=job,
        fault=fault or "none",
        machine=victim.name if victim else "",
        exit_code=exit_code,
        submitted=1 + log.read_text().count("submitting it again"),
        seconds=round(time.monotonic() - start, 1),
        same=same,
        outcome=outcome,
    )


def _judged(
    place: Place, job: str, exit_code: int, undisturbed: Place | None, *, is_struck: bool
) -> tuple[bool, str]:
    digests = place.digests(job)
    if exit_code != 0:
        return False, f"failed after {len(digests)} files"
    if not digests:
        return False, "nothing written"
    if undisturbed is None:
        return True, f"{len(digests)} files"
    expected = undisturbed.digests(job)
    if digests != expected:
        names = sorted(digests | expected)
        apart = [name for name in names if digests.get(name) != expected.get(name)]
        return False, f"other bytes: {', '.join(apart)}"
    if not is_struck:
        return False, "ended before it was struck"
    return True, f"{len(digests)} files, the same"


def _wait_until_under_way(
    submission: "subprocess.Popen[bytes]", machines: Sequence[Machine], place: Place, job: str
) -> bool:
    """False where it ended first."""
    seen_at = None
    while submission.poll() is None:
        is_under_way = place.is_under_way(job)
        if is_under_way:
            return True
        if is_under_way is None:
            lines = machines[0].processes().values()
            if seen_at is None and any(f"carrara.py {job}" in line for line in lines):
                seen_at = time.monotonic()
            if seen_at is not None and time.monotonic() - seen_at > INTO_IT_S:
                return True
        time.sleep(POLL_EVERY_S)
    return False


def _wait_for(machines: Sequence[Machine]) -> None:
    """Until Ray's head knows these machines, it among them, as alive."""
    from ray.util.state import list_nodes

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            nodes = list_nodes(address=_dashboard(machines), timeout=10)
        except Exception as error:  # whatever a dashboard that starts or ends answers
            print(f"drill: waiting for the cluster ({type(error).__name__})", file=sys.stderr)
        else:
            if sum(node.state == "ALIVE" for node in nodes) == len(machines):
                return
        time.sleep(1)
    raise SystemExit(f"the cluster of {len(machines)} did not start in {START_TIMEOUT_S:.0f} s")


def _dashboard(machines: Sequence[Machine]) -> str:
    return f"http://{machines[0].address}:{DASHBOARD_PORT}"


@contextmanager
def _pictures() -> Iterator[None]:
    command = [sys.executable, "-m", "infra.drill.pictures", "0.0.0.0", str(PICTURES_PORT)]
    server = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        yield
    finally:
        server.kill()
        server.wait()


def _tell(outcome: Outcome) -> None:
    print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
