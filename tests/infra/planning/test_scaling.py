import itertools

import pytest

from infra.planning.fleet import Machine
from infra.planning.scaling import all_reduce_s, step_of

A100S = Machine(
    count=1, cores=96, memory_gb=1000, network_gbps=1600, gpus=8, gpu="A100", gpu_link_gbps=2400
)


def test_a_ring_sends_almost_twice_the_gradients() -> None:
    inside = 2 * 7 / 8 * 3e9 / 300e9
    assert all_reduce_s(A100S, 1, 3e9) == pytest.approx(inside)
    assert all_reduce_s(A100S, 2, 3e9) == pytest.approx(inside + 2 * 1 / 2 * 3e9 / 200e9)


def test_one_device_sends_nothing() -> None:
    alone = A100S.model_copy(update={"gpus": 1})
    assert all_reduce_s(alone, 1, 3e9) == 0


def test_a_fixed_batch_on_more_machines_is_less_efficient() -> None:
    steps = [step_of(A100S, num, 5e11, 2048, 3.5e9, 75e12, 0.0) for num in (1, 2, 4, 8, 16)]
    assert all(a.seconds > b.seconds for a, b in itertools.pairwise(steps))
    assert all(a.efficiency > b.efficiency for a, b in itertools.pairwise(steps))


def test_communication_behind_compute_costs_nothing() -> None:
    step = step_of(A100S, 16, 5e11, 2048, 3.5e9, 75e12, 1.0)
    assert step.communication_s > 0
    assert step.exposed_s == max(0, step.communication_s - 2 / 3 * step.compute_s)
