from pathlib import Path

import pytest

from infra.errors import ConfigError, DamagedError
from infra.planning.fleet import Fleet, Machine, read_fleet, this_machine
from infra.planning.rates import Rates, read_rates

REPOSITORY = Path(__file__).parents[3]
CPUS = Machine(count=1, cores=4, memory_gb=8, network_gbps=1)


def test_the_description_that_ships_names_the_machines_of_the_cluster_file() -> None:
    fleet = read_fleet(str(REPOSITORY / "infra/deploy/ray/aws.plan.toml"))
    assert fleet.for_stage("train")[0] == "gpu"
    assert fleet.for_stage("index")[0] == "large"
    assert fleet.for_stage("download")[0] == "cpu"


def test_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[machines.cpu]\ncount = 1\ncores = 4\nmemory_gb = 8\nnetwork_gps = 1\n")
    with pytest.raises(DamagedError, match="network_g"):
        read_fleet(str(file))


def test_a_description_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_fleet("/nowhere/fleet.toml")
    with pytest.raises(ConfigError, match="--calibrate"):
        read_rates("/nowhere/rates.toml")


def test_a_stage_on_machines_that_there_are_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stages\.train is 'big'"):
        Fleet(machines={"cpu": CPUS}, stages={"train": "big"}).for_stage("train")


def test_an_unknown_gpu_wants_its_figure() -> None:
    with pytest.raises(ConfigError, match="peak_tflops"):
        _ = CPUS.model_copy(update={"gpus": 1, "gpu": "Z9"}).peak_flops
    assert CPUS.model_copy(update={"gpu": "Z9", "peak_tflops": 10}).peak_flops == 1e13


def test_without_a_description_it_is_this_machine() -> None:
    ((name, machine),) = this_machine().machines.items()
    assert name == "here"
    assert machine.cores >= 1


def test_the_default_rates_are_complete() -> None:
    assert Rates().machine == "defaults"
