"""The rehearsal itself, in namespaces of its own: jobs, each struck by a fault, and its outcome.

    unshare --net --mount --pid --fork --mount-proc python -m infra.drill.inside FOLDER CHAINS S

CHAINS is JSON: lists of [job, fault]. Every chain starts from the list of URLs; each job's output
is held against that of the same job in an undisturbed chain. It ends after S seconds at the latest.
Prints a JSON object a job, and one a step.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.drill.faults import FAULTS, workers
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
from infra.drill.steps import Budget, OverdueError, step, tell, wait_until
from infra.drill.submission import Submission
from infra.errors import ShortfallError, StorageError

BUCKET = "s3://drill"
NUM_MACHINES = 3
REPOSITORY = Path(__file__).parents[2]

STORE_TIMEOUT_S = 60.0
START_TIMEOUT_S = 120.0
"""Of one machine."""
BACK_TIMEOUT_S = 90.0
"""Of all machines after a fault; then they are switched off and on."""
JOB_TIMEOUT_S = 360.0
POLL_EVERY_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    job: str
    fault: str
    machine: str
    """That was struck; "" where none was, or the job ended before."""
    exit_code: int | None
    """None: it was given up."""
    submitted: int
    """How often."""
    seconds: float
    same: bool
    """It ended well, and left the bytes that it leaves undisturbed."""
    outcome: str


def main() -> None:
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    folder, chains, budget = Path(sys.argv[1]), json.loads(sys.argv[2]), Budget(float(sys.argv[3]))
    # `ip netns` keeps its names there; the real one may not be ours to write to.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    lay_cables()
    try:
        with serve_s3(OUTSIDE, folder / "s3") as endpoint, _pictures():
            environment = environment_of_machines(folder, endpoint)
            os.environ.update(environment)
            _make_bucket(budget)
            machines = make_machines(folder, NUM_MACHINES, environment)
            _switch_on(machines, budget)
            _Rehearsal(folder, machines, budget).carry_out(chains)
    except (OverdueError, ShortfallError) as error:
        tell(f"the drill is given up: {error}")
        sys.exit(1)


def _end_with_the_command() -> None:
    """This is the first process of its namespaces: when it ends, all in them do. Whoever started
    it holds the other end of its stdin, until the end."""
    sys.stdin.read()
    os._exit(1)


# The cluster


def _make_bucket(budget: Budget) -> None:
    """With what all jobs read; the server answers before it can store."""
    import s3fs

    def is_made() -> bool:
        try:
            s3fs.S3FileSystem().mkdirs(BUCKET, exist_ok=True)
            lay_out(BUCKET)
        except (OSError, StorageError) as error:
            print(f"drill: the object store: {error}", file=sys.stderr)
            return False
        return True

    with step("an object store"):
        wait_until(is_made, "a bucket that takes files", budget.of(STORE_TIMEOUT_S), 1)


def _switch_on(machines: Sequence[Machine], budget: Budget) -> None:
    """One after the other: a Ray that does not start within 30 s gives up and starts anew."""
    for num, machine in enumerate(machines, 1):
        with step(f"{machine.name} switched on"):
            machine.turn_on()
            _wait_for(machines[:num], budget.of(START_TIMEOUT_S))


def _bring_back(machines: Sequence[Machine], budget: Budget) -> None:
    try:
        with step("all machines are back"):
            _wait_for(machines, budget.of(BACK_TIMEOUT_S))
    except OverdueError:
        for machine in machines:
            machine.lose_power()
        _switch_on(machines, budget)


def _wait_for(machines: Sequence[Machine], timeout_s: float) -> None:
    """Until Ray's head knows these machines, it among them, as alive, and no others."""
    from ray.util.state import list_nodes

    expected = sorted(machine.address for machine in machines)

    def are_there() -> bool:
        try:
            nodes = list_nodes(address=_dashboard(machines), timeout=10)
        except Exception as error:  # whatever a dashboard that starts or ends answers
            print(f"drill: waiting for the cluster ({type(error).__name__})", file=sys.stderr)
            return False
        return sorted(node.node_ip for node in nodes if node.state == "ALIVE") == expected

    names = ", ".join(machine.name for machine in machines)
    wait_until(are_there, f"a cluster of {names}", timeout_s, 1)


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


# The jobs


@dataclass(frozen=True)
class _Rehearsal:
    folder: Path
    machines: Sequence[Machine]
    budget: Budget

    def carry_out(self, chains: list[list[list[str]]]) -> None:
        """Ends early where nothing is left to hold the others against."""
        undisturbed = Place(BUCKET, "undisturbed")
        for job in JOBS:
            if any(job == name for chain in chains for name, _ in chain):
                outcome = self._job(undisturbed, job, "none", None)
                _tell(outcome)
                if not outcome.same:
                    return
        for number, chain in enumerate(chains):
            self._chain(Place(BUCKET, f"chain{number}"), chain, undisturbed)

    def _chain(self, place: Place, chain: list[list[str]], undisturbed: Place) -> None:
        for job, fault in chain:
            outcome = self._job(place, job, fault, undisturbed)
            _tell(outcome)
            _bring_back(self.machines, self.budget)
            if outcome.exit_code != 0 and self._job(place, job, "none", None).exit_code != 0:
                return  # the next one needs what this one makes

    def _job(self, place: Place, job: str, fault: str, undisturbed: Place | None) -> Outcome:
        start = time.monotonic()
        deadline = start + self.budget.of(JOB_TIMEOUT_S)
        idle = set[int]().union(*map(workers, self.machines))
        submission = self._submit(place, job, fault)
        victim = None
        if fault != "none" and _is_under_way(submission, place, job, deadline):
            victim = FAULTS[fault].victim(self.machines, job, idle)
        if victim is not None:
            tell(f"{job}, {fault}: {victim.name} is struck {time.monotonic() - start:.1f} s in")
        with nullcontext() if victim is None else FAULTS[fault].befalls(victim):
            exit_code = submission.wait(max(0.0, deadline - time.monotonic()))
        num_tries, by_its_user = submission.num_tries, ""
        if exit_code and victim is not None and FAULTS[fault].needs_its_user:
            tell(f"{job}, {fault}: ended with exit code {exit_code}, is given again")
            submission = self._submit(place, job, f"{fault}-again")
            exit_code = submission.wait(self.budget.of(JOB_TIMEOUT_S))
            num_tries += submission.num_tries
            by_its_user = ", given again by its user"
        seconds = time.monotonic() - start
        same, outcome = _judged(place, job, exit_code, undisturbed, is_struck=victim is not None)
        outcome += by_its_user
        if exit_code is None:
            outcome = f"not done after {seconds:.0f} s"
        tell(f"{job}, {fault}: {seconds:.1f} s: {outcome}")
        name = victim.name if victim else ""
        return Outcome(job, fault, name, exit_code, num_tries, round(seconds, 1), same, outcome)

    def _submit(self, place: Place, job: str, name: str) -> Submission:
        log = self.folder / f"{place.name}-{job}-{name.replace(' ', '-')}.log"
        return Submission(place.command(job), _dashboard(self.machines), log)


def _is_under_way(submission: Submission, place: Place, job: str, deadline: float) -> bool:
    """Waits for it; False where it ended first, or in time did not begin."""
    while submission.is_running and time.monotonic() < deadline:
        if place.is_under_way(job):
            return True
        time.sleep(POLL_EVERY_S)
    return False


def _judged(
    place: Place, job: str, exit_code: int | None, undisturbed: Place | None, *, is_struck: bool
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


def _tell(outcome: Outcome) -> None:
    print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
