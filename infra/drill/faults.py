"""What befalls machines, and what then is done for them, as a cluster's keepers would."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

from infra.drill.machines import Machine

REPLACED_AFTER_S = 5.0
CUT_FOR_S = 30.0
"""Longer than it takes until a silent machine is held for lost."""
FULL_FOR_S = 30.0
"""Until somebody makes room."""

NO_WORKERS = (
    *("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    *("ray::TrainController", "ray::SynchronizationActor", "ray::DatasetManager"),
    "ray::PlacementGroupCleaner",
)
"""What every node of Ray's has, whether it works or not; and what Ray Train has beside its workers,
anywhere."""


@dataclass(frozen=True)
class Fault:
    name: str
    strikes_head: bool
    begin: Callable[[Machine], None]
    end: Callable[[Machine], None]
    lasts_s: float
    """Or until the job's end, if that comes before."""
    needs_its_user: bool = False
    """A command that it ends is given again once it is over, by whoever ended it."""

    def victim(self, machines: Sequence[Machine], job: str, idle: set[int]) -> Machine | None:
        """A machine that is at work on this job: one with workers that are not among the `idle`
        ones, else the head where its command runs. None: the job is over."""
        head, *others = machines
        for machine in () if self.strikes_head else others:
            if workers(machine) - idle:
                return machine
        return head if _drives(head, job) else None

    @contextmanager
    def befalls(self, machine: Machine) -> Iterator[None]:
        """From now on, until its time or the `with` is over."""
        is_over = Event()

        def end() -> None:
            is_over.wait(self.lasts_s)
            self.end(machine)

        self.begin(machine)
        keeper = Thread(target=end, name=f"after {self.name}")
        keeper.start()
        try:
            yield
        finally:
            is_over.set()
            keeper.join()


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("node killed", False, Machine.lose_power, Machine.turn_on, REPLACED_AFTER_S),
        Fault("node cut off", False, Machine.pull_cable, Machine.put_cable_back, CUT_FOR_S),
        Fault("head restarted", True, Machine.lose_power, Machine.turn_on, REPLACED_AFTER_S),
        Fault("disk filled", False, Machine.fill_disk, Machine.free_disk, FULL_FOR_S, True),
    )
}


def workers(machine: Machine) -> set[int]:
    """Processes on it in which Ray computes for somebody."""
    return {
        process
        for process, line in machine.processes().items()
        if line.startswith("ray::") and not line.startswith(NO_WORKERS)
    }


def _drives(machine: Machine, job: str) -> bool:
    return any(f"carrara.py {job}" in line for line in machine.processes().values())
