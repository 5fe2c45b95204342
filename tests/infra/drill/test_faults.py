"""Faults strike a machine that is at work on the job, and end with their time or with the job."""

import time
from collections.abc import Callable

import pytest

from infra.drill.faults import FAULTS, Fault, workers
from infra.drill.machines import Machine

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")
Make = Callable[..., Machine]


def test_a_machine_is_at_work_where_ray_computes(make_machine: Make) -> None:
    head = make_machine("python carrara.py train", *AGENTS)
    waiting = make_machine(*AGENTS, "ray::SynchronizationActor", "ray::DatasetManager")
    working = make_machine("ray::RayTrainWorker", *AGENTS)
    machines = [head, waiting, working]
    assert FAULTS["node killed"].victim(machines, "train", set()) is working
    assert FAULTS["head restarted"].victim(machines, "train", set()) is head


def test_what_was_there_before_the_job_is_not_its_work(make_machine: Make) -> None:
    head, other = make_machine("python carrara.py sample"), make_machine("ray::Leftover")
    idle = workers(other)
    assert len(idle) == 1
    assert FAULTS["node killed"].victim([head, other], "sample", idle) is head
    assert FAULTS["node killed"].victim([head, other], "sample", set()) is other


def test_a_job_that_is_over_is_not_struck(make_machine: Make) -> None:
    machines = [make_machine("python carrara.py index"), make_machine(*AGENTS)]
    for fault in FAULTS.values():
        assert fault.victim(machines, "index", set()) is machines[0]
        assert fault.victim(machines, "sample", set()) is None


@pytest.mark.parametrize(("lasts_s", "job_s"), [(0.2, 60.0), (60.0, 0.2)])
def test_a_fault_ends_with_its_time_or_with_the_job(
    lasts_s: float, job_s: float, make_machine: Make
) -> None:
    told: list[str] = []
    fault = Fault("rain", False, lambda _: told.append("on"), lambda _: told.append("off"), lasts_s)
    started = time.monotonic()
    with fault.befalls(make_machine()):
        assert told == ["on"] or time.monotonic() - started > lasts_s
        while "off" not in told and time.monotonic() - started < job_s:
            time.sleep(0.01)
    assert told == ["on", "off"]
    assert time.monotonic() - started < 30
