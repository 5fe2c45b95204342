"""What befalls machines, and what then is done for them, as a cluster's keepers would."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infra.drill.machines import Machine

REPLACED_AFTER_S = 5.0
CUT_FOR_S = 30.0
"""Longer than it takes until a silent machine is held for lost."""


@dataclass(frozen=True)
class Fault:
    name: str
    strikes_head: bool
    begin: Callable[[Machine], None]
    end: Callable[[Machine], None]
    lasts_s: float | None
    """None: until the job's end."""

    def victim(self, machines: Sequence[Machine]) -> Machine:
        """A machine that is at work."""
        return machines[0] if self.strikes_head else _at_work(machines)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("node killed", False, Machine.lose_power, Machine.turn_on, REPLACED_AFTER_S),
        Fault("node cut off", False, Machine.pull_cable, Machine.put_cable_back, CUT_FOR_S),
        Fault("head restarted", True, Machine.lose_power, Machine.turn_on, REPLACED_AFTER_S),
        Fault("disk filled", False, Machine.fill_disk, Machine.free_disk, None),
    )
}


def _at_work(machines: Sequence[Machine]) -> Machine:
    """One that is not the head; the head itself, where all of the work is done there."""
    head, *others = machines
    return next((machine for machine in others if _has_workers(machine)), head)


def _has_workers(machine: Machine) -> bool:
    names = machine.processes().values()
    return any(name.startswith("ray::") and "IDLE" not in name for name in names)
