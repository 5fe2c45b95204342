"""Each stage's demand by hand-made figures, and which resource binds."""

import pytest

from infra.planning.fleet import Fleet, Machine, Store
from infra.planning.rates import Rates
from infra.planning.stages import (
    download_demand,
    embed_demand,
    estimate,
    index_demand,
    pack_demand,
    score_demand,
)
from infra.planning.workload import PICTURE_BYTES_AT_256, SAMPLE_OVERHEAD_BYTES, Workload

WORK = Workload(
    num_pairs=1e6,
    live_share=0.8,
    image_size=256,
    fetched_bytes=1e5,
    samples_per_shard=10_000,
    kept_share=0.5,
)
RATES = Rates(
    fetch_ms=2, resize_ms=2, write_ms=0.5, fetch_wait_s=0.1, decode_ms=1, encode_mfu=0.5, pack_ms=1
)
CPUS = Machine(count=10, cores=10, memory_gb=32, network_gbps=10, dollars_per_hour=2)
GPUS = Machine(count=1, cores=8, memory_gb=64, network_gbps=10, gpus=2, peak_tflops=100)


def fleet(**machines: Machine) -> Fleet:
    return Fleet(machines=machines)


def test_a_download_takes_its_cpu_where_that_binds() -> None:
    made = estimate("download", download_demand(WORK, RATES), fleet(cpu=CPUS), RATES)
    assert made.bound == "cores"
    assert made.seconds == pytest.approx((1e6 * 2 + 0.8e6 * 2.5) / 1e3 / 100)  # 40 s
    assert made.dollars == pytest.approx(40 / 3600 * 10 * 2)
    sample = PICTURE_BYTES_AT_256 + SAMPLE_OVERHEAD_BYTES
    assert made.demand.written_bytes == pytest.approx(0.8e6 * sample)
    assert made.demand.web_bytes == pytest.approx(0.8e11)


@pytest.mark.parametrize(
    ("changed", "bound"),
    [
        ({"network_gbps": 0.5}, "network"),
        ({"network_gbps": 100.0}, "cores"),
    ],
)
def test_the_bound_follows_the_machines(changed: dict[str, float], bound: str) -> None:
    machines = fleet(cpu=CPUS.model_copy(update=changed))
    assert estimate("download", download_demand(WORK, RATES), machines, RATES).bound == bound


def test_slow_hosts_bind_the_connections() -> None:
    slow = RATES.model_copy(update={"fetch_wait_s": 5.0})
    made = estimate("download", download_demand(WORK, slow), fleet(cpu=CPUS), slow)
    assert made.bound == "connections"
    assert made.seconds == pytest.approx(1e6 * 5 / (100 * 64))


def test_a_store_that_gives_little_binds_them_all() -> None:
    slow = Fleet(machines={"cpu": CPUS}, store=Store(gbps=0.1))
    assert estimate("pack", pack_demand(WORK, RATES), slow, RATES).bound == "store"


def test_embedding_is_the_gpus_work_where_there_are_some() -> None:
    machines = fleet(cpu=CPUS, gpu=GPUS)
    demand = embed_demand(WORK, RATES, GPUS, encoder_flops=1e11, dim=512)
    made = estimate("embed", demand, machines, RATES)
    assert (made.machine, made.bound) == ("gpu", "GPUs")
    assert made.seconds == pytest.approx(0.8e6 * 1e11 / (2 * 50e12))
    assert made.demand.written_bytes == 0.8e6 * 2 * 2 * 512


def test_few_cores_beside_many_gpus_bind_with_decoding() -> None:
    demand = embed_demand(WORK, RATES, GPUS, encoder_flops=1e9, dim=512)
    assert estimate("embed", demand, fleet(gpu=GPUS), RATES).bound == "cores"


def test_without_gpus_the_cores_encode() -> None:
    demand = embed_demand(WORK, RATES, CPUS, encoder_flops=1e10, dim=512)
    assert demand.gpu_s == 0
    encode_s = 0.8e6 * 1e10 / (RATES.encode_core_gflops * 1e9)
    assert demand.core_s == pytest.approx(encode_s + 0.8e6 * 1e-3)


def test_scoring_reads_all_and_writes_little() -> None:
    made = estimate("score", score_demand(WORK, RATES), fleet(cpu=CPUS, gpu=GPUS), RATES)
    assert (made.machine, made.bound) == ("cpu", "cores")
    assert made.seconds == pytest.approx(0.8e6 * RATES.score_ms / 1e3 / 100)
    assert made.demand.written_bytes < made.demand.read_bytes / 100
    assert made.demand.writes == 3 * 100


def test_an_index_is_made_on_one_machine_however_many_there_are() -> None:
    demand = index_demand(WORK, RATES, dim=512, num_lists=4096, index_bytes=1e9)
    made = estimate("index", demand, fleet(cpu=CPUS), RATES)
    assert (made.num_machines, made.num_cores) == (1, 10)


def test_lost_machines_cost_what_they_were_at() -> None:
    spot = CPUS.model_copy(update={"losses_per_hour": 1.0, "replacement_s": 600.0})
    demand = download_demand(WORK, RATES)
    calm = estimate("download", demand, fleet(cpu=CPUS), RATES)
    lossy = estimate("download", demand, fleet(cpu=spot), RATES)
    assert calm.goodput == 1
    # e^(R/M): a replacement every hour that takes ten minutes; a shard's seconds hardly count.
    assert lossy.goodput == pytest.approx(1 / 1.18, abs=0.01)
    assert lossy.dollars > calm.dollars


def test_more_machines_take_less_time_for_the_same_money() -> None:
    demand = download_demand(WORK, RATES)
    few = estimate("download", demand, fleet(cpu=CPUS), RATES)
    many = estimate("download", demand, fleet(cpu=CPUS.model_copy(update={"count": 40})), RATES)
    assert many.seconds == pytest.approx(few.seconds / 4)
    assert many.dollars == pytest.approx(few.dollars)
