"""Each stage on its machines: what it asks of cores, GPUs, network and store, and which binds it.

A stage takes as long as what it asks most of: `bound` names that. Everything else runs beside it,
for fetching, decoding, computing and writing are pipelined.
"""

import math
from dataclasses import dataclass, field

from infra.planning.failures import Losses, daly_interval_s
from infra.planning.fleet import Fleet, Machine
from infra.planning.rates import Rates
from infra.planning.scaling import Step
from infra.planning.workload import (
    STATE_BYTES_PER_PARAMETER,
    Workload,
    num_reads,
    num_writes,
)

FILES_A_SHARD = 3
"""tar, parquet, _stats.json."""
NEVER_LOST_INTERVAL_S = 3600.0
FILES_A_PART = 4
"""Embeddings of pictures and of captions, metadata, the part's record."""
NUM_SIGNALS, COLUMN_BYTES = 3, 200
"""Caption, image and placeholder, which `carrara score` takes unasked without embeddings; what they
write of a sample: the emoji demo's, in files of 100, so that larger ones take less."""


@dataclass(frozen=True)
class Demand:
    """What a stage asks for, whoever does it."""

    core_s: float = 0.0
    gpu_s: float = 0.0
    connection_s: float = 0.0
    step_s: float = 0.0
    """Of training's steps, one after the other; communication included."""
    web_bytes: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    num_units: float = 1.0
    """What a worker does at a time and does again if it is lost: shards."""
    on_one_machine: bool = False


@dataclass(frozen=True)
class Estimate:
    stage: str
    machine: str
    num_machines: int
    num_cores: int
    num_gpus: int
    demand: Demand
    limits_s: dict[str, float]
    """How long it would take were each resource the only one."""
    goodput: float
    dollars_per_hour: float
    losses: Losses = field(repr=False)

    @property
    def bound(self) -> str:
        return max(self.limits_s, key=lambda name: self.limits_s[name])

    @property
    def undisturbed_s(self) -> float:
        return self.limits_s[self.bound]

    @property
    def seconds(self) -> float:
        return self.undisturbed_s / self.goodput if self.goodput else math.inf

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def dollars(self) -> float:
        return self.hours * self.dollars_per_hour


def download_demand(work: Workload, rates: Rates) -> Demand:
    resize_ms = rates.resize_ms * (work.image_size / rates.resize_size) ** 2
    pair_ms = rates.fetch_ms + work.live_share * (resize_ms + rates.write_ms)
    written = work.num_pictures * work.sample_bytes
    small_files = (FILES_A_SHARD - 1) * work.num_shards
    return Demand(
        core_s=work.num_pairs * pair_ms / 1e3,
        connection_s=work.num_pairs * rates.fetch_wait_s,
        web_bytes=work.num_pictures * work.fetched_bytes,
        written_bytes=written,
        writes=num_writes(work.num_shards, work.shard_bytes) + small_files,
        num_units=work.num_shards,
    )


def embed_demand(
    work: Workload, rates: Rates, machine: Machine, encoder_flops: float, dim: int
) -> Demand:
    decode_s = work.num_pictures * rates.decode_ms * (work.image_size / 256) ** 2 / 1e3
    flops = work.num_pictures * encoder_flops
    gpu_s = flops / (machine.peak_flops * rates.encode_mfu) if machine.gpus else 0.0
    encode_s = 0.0 if machine.gpus else flops / (rates.encode_core_gflops * 1e9)
    return Demand(
        core_s=decode_s + encode_s,
        gpu_s=gpu_s,
        read_bytes=work.num_pictures * work.sample_bytes,
        written_bytes=work.embedding_bytes(dim),
        reads=num_reads(work.num_shards, work.shard_bytes) + work.num_shards,
        writes=FILES_A_PART * work.num_shards,
        num_units=work.num_shards,
    )


def index_demand(
    work: Workload, rates: Rates, dim: int, num_lists: int, index_bytes: float
) -> Demand:
    """Both modalities, one after the other on one machine: each vector is held against the
    centroid of every list."""
    flops = 2 * work.num_pictures * 2 * num_lists * dim
    return Demand(
        core_s=flops / (rates.matmul_core_gflops * 1e9),
        read_bytes=work.embedding_bytes(dim),
        written_bytes=index_bytes,
        reads=num_reads(2 * work.num_shards, work.embedding_bytes(dim) / 2 / work.num_shards),
        writes=num_writes(2, index_bytes / 2),
        on_one_machine=True,
    )


def score_demand(work: Workload, rates: Rates) -> Demand:
    return Demand(
        core_s=work.num_pictures * rates.score_ms * (work.image_size / 256) ** 2 / 1e3,
        read_bytes=work.num_pictures * work.sample_bytes,
        written_bytes=work.num_pictures * COLUMN_BYTES,
        reads=num_reads(work.num_shards, work.shard_bytes) + work.num_shards,
        writes=NUM_SIGNALS * work.num_shards,
        num_units=work.num_shards,
    )


def pack_demand(work: Workload, rates: Rates) -> Demand:
    kept_bytes = work.num_kept * work.sample_bytes
    num_new = max(1.0, work.num_kept / work.samples_per_shard)
    return Demand(
        core_s=work.num_kept * rates.pack_ms / 1e3,
        read_bytes=work.num_pictures * work.sample_bytes,
        written_bytes=kept_bytes,
        reads=num_reads(work.num_shards, work.shard_bytes) + work.num_shards,
        writes=num_writes(num_new, kept_bytes / num_new) + (FILES_A_SHARD - 1) * num_new,
        num_units=num_new,
    )


def train_demand(
    work: Workload,
    rates: Rates,
    step: Step,
    batch_size: int,
    num_steps: int,
    num_parameters: int,
    num_checkpoints: float,
) -> Demand:
    num_images = num_steps * batch_size
    checkpoint_bytes = STATE_BYTES_PER_PARAMETER * num_parameters
    decode_ms = rates.decode_ms * (work.image_size / 256) ** 2
    return Demand(
        core_s=num_images * decode_ms / 1e3,
        step_s=num_steps * step.seconds,
        read_bytes=num_images * work.sample_bytes,
        written_bytes=num_checkpoints * checkpoint_bytes,
        reads=num_reads(num_images / work.samples_per_shard, work.shard_bytes),
        writes=num_writes(num_checkpoints, checkpoint_bytes),
    )


def estimate(stage: str, demand: Demand, fleet: Fleet, rates: Rates) -> Estimate:
    """Of a stage whose workers are lost one by one."""
    name, machine = fleet.for_stage(stage)
    count = 1 if demand.on_one_machine else machine.count
    limits = _limits(demand, machine, count, fleet, rates)
    unit_s = max(limits.values()) * count / demand.num_units
    between_s = 3600 / machine.losses_per_hour if machine.losses_per_hour else math.inf
    # A machine works at as many shards as it has cores, and loses all of them.
    work_s = unit_s * (1 if demand.on_one_machine else machine.cores)
    losses = Losses(between_s, work_s, 0.0, machine.replacement_s)
    return _made(stage, name, machine, count, demand, limits, losses)


def estimate_training(
    demand: Demand, fleet: Fleet, rates: Rates, num_parameters: int, interval_s: float
) -> Estimate:
    """Of workers that all stop when one is lost, with so much work between two checkpoints."""
    name, machine = fleet.for_stage("train")
    limits = _limits(demand, machine, machine.count, fleet, rates)
    save_s = _save_s(machine, num_parameters)
    restart_s = machine.replacement_s + save_s  # what was saved is read again
    losses = Losses(_between_losses_s(machine), interval_s, save_s, restart_s)
    return _made("train", name, machine, machine.count, demand, limits, losses)


def checkpoint_interval_s(machine: Machine, num_parameters: int) -> float:
    """Daly's; an hour where no machine is ever lost."""
    between_s = _between_losses_s(machine)
    if math.isinf(between_s):
        return NEVER_LOST_INTERVAL_S
    return daly_interval_s(_save_s(machine, num_parameters), between_s)


def _between_losses_s(machine: Machine) -> float:
    """Of any one of them."""
    rate = machine.losses_per_hour * machine.count
    return 3600 / rate if rate else math.inf


def _save_s(machine: Machine, num_parameters: int) -> float:
    """The first worker writes, while the others wait."""
    return STATE_BYTES_PER_PARAMETER * num_parameters * 8 / (machine.network_gbps * 1e9)


def _limits(
    demand: Demand, machine: Machine, count: int, fleet: Fleet, rates: Rates
) -> dict[str, float]:
    cores = count * machine.cores
    moved_bits = 8 * (demand.web_bytes + demand.read_bytes + demand.written_bytes)
    stored_bits = 8 * (demand.read_bytes + demand.written_bytes)
    limits = {
        "cores": demand.core_s / cores,
        "network": moved_bits / (count * machine.network_gbps * 1e9),
        "GPUs": demand.gpu_s / (count * machine.gpus) if machine.gpus else 0.0,
        "connections": demand.connection_s / (cores * rates.connections_per_core),
        "steps": demand.step_s,
    }
    if fleet.store.gbps is not None:
        limits["store"] = stored_bits / (fleet.store.gbps * 1e9)
    return {resource: seconds for resource, seconds in limits.items() if seconds}


def _made(
    stage: str,
    name: str,
    machine: Machine,
    count: int,
    demand: Demand,
    limits: dict[str, float],
    losses: Losses,
) -> Estimate:
    return Estimate(
        stage=stage,
        machine=name,
        num_machines=count,
        num_cores=count * machine.cores,
        num_gpus=count * machine.gpus,
        demand=demand,
        limits_s=limits,
        goodput=losses.goodput,
        dollars_per_hour=count * machine.dollars_per_hour,
        losses=losses,
    )
