"""A plan: every stage of a corpus and a model held against the machines that are to do it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from infra.planning.encoders import EncoderCost
from infra.planning.failures import MONTH_S, live_share
from infra.planning.fleet import Fleet, Machine
from infra.planning.rates import Rates
from infra.planning.scaling import Step, step_of
from infra.planning.stages import (
    Estimate,
    checkpoint_interval_s,
    download_demand,
    embed_demand,
    estimate,
    estimate_training,
    index_demand,
    pack_demand,
    score_demand,
    train_demand,
)
from infra.planning.workload import Workload
from retrieval.indexing.kinds import MAX_FLAT, estimated_bytes, num_lists
from training.config import Config as TrainConfig
from training.network import flops_per_image, make_network
from training.planning.calibration import cost_of

if TYPE_CHECKING:
    from training.plan import Config

GRADIENT_BYTES_PER_PARAMETER = 4
"""float32, as DistributedDataParallel sends them."""
NUM_CAPTION_TOKENS = 20
"""Of a caption of the web; the text tower computes no further (docs/embed.md)."""

RECALL_REACHED = (("SQ4", 0.77), ("SQ8", 0.965), ("SQfp16", 0.99))
"""Recall@10 of text queries that an index reaches whose found vectors are compared again at this
precision (docs/index.md; the last an estimate). Above, nothing but all vectors in full."""


@dataclass(frozen=True)
class Plan:
    work: Workload
    links_alive: float
    """When their turn comes."""
    fleet: Fleet
    encoder: EncoderCost
    stages: list[Estimate]
    index_kind: str
    index_bytes: float
    """Of one modality."""
    num_parameters: int
    checkpoint_interval_s: float
    step: Step


def make_plan(config: "Config", fleet: Fleet, rates: Rates, num_pairs: float) -> Plan:
    encoder = cost_of(config.encoder)
    work = _workload(config, fleet, rates, num_pairs)
    kind, lists, index_bytes = _index(config.recall, round(work.num_pictures), encoder.dim)
    _, embedder = fleet.for_stage("embed")
    flops = encoder.flops(NUM_CAPTION_TOKENS)
    demands = {
        "download": download_demand(work, rates),
        "embed": embed_demand(work, rates, embedder, flops, encoder.dim),
        "index": index_demand(work, rates, encoder.dim, lists, 2 * index_bytes),
        "score": score_demand(work, rates),
        "pack": pack_demand(work, rates),
    }
    stages = [estimate(name, demand, fleet, rates) for name, demand in demands.items()]
    trained, interval_s, num_parameters, step = _trained(config, fleet, rates, work)
    return Plan(
        work=work,
        links_alive=work.live_share / config.success_share,
        fleet=fleet,
        encoder=encoder,
        stages=[*stages, trained],
        index_kind=kind,
        index_bytes=index_bytes,
        num_parameters=num_parameters,
        checkpoint_interval_s=interval_s,
        step=step,
    )


def _workload(config: "Config", fleet: Fleet, rates: Rates, num_pairs: float) -> Workload:
    """Links die while others are fetched: the download's length decides how many, and they its."""
    duration_s = 0.0
    for _ in range(3):
        age_s = config.age_months * MONTH_S
        alive = live_share(age_s, duration_s, config.link_rot_per_month)
        work = Workload(
            num_pairs=num_pairs,
            live_share=config.success_share * alive,
            image_size=config.image_size,
            fetched_bytes=1e3 * config.fetched_kb,
            samples_per_shard=config.samples_per_shard,
            kept_share=config.kept_share,
        )
        duration_s = estimate("download", download_demand(work, rates), fleet, rates).seconds
    return work


def _index(recall: float, num_rows: int, dim: int) -> tuple[str, int, float]:
    """The smallest kind that reaches it, its lists, and its bytes for one modality."""
    lists = num_lists(num_rows)
    kinds = [
        f"IVF{lists},PQ{dim // 4}x4fs,Refine({fine})"
        for fine, reached in RECALL_REACHED
        if reached >= recall
    ]
    if num_rows <= MAX_FLAT or not kinds:
        return "Flat", 1, estimated_bytes("Flat", num_rows, dim)
    return kinds[0], lists, estimated_bytes(kinds[0], num_rows, dim)


def _trained(
    config: "Config", fleet: Fleet, rates: Rates, work: Workload
) -> tuple[Estimate, float, int, Step]:
    settings = train_config(config)
    with torch.device("meta"):
        num_parameters = make_network(settings, text_width=512).num_parameters
    _, machine = fleet.for_stage("train")
    step = step_of(
        machine,
        machine.count,
        flops_per_image(settings).training,
        config.batch_size,
        GRADIENT_BYTES_PER_PARAMETER * num_parameters,
        device_flops(machine, rates),
        rates.overlap,
    )
    num_steps = math.ceil(config.epochs * work.num_kept / config.batch_size)
    interval_s = checkpoint_interval_s(machine, num_parameters)
    num_checkpoints = max(1.0, num_steps * step.seconds / interval_s)
    demand = train_demand(
        work, rates, step, config.batch_size, num_steps, num_parameters, num_checkpoints
    )
    made = estimate_training(demand, fleet, rates, num_parameters, interval_s)
    return made, interval_s, num_parameters, step


def device_flops(machine: Machine, rates: Rates) -> float:
    """What one GPU really makes of training; where there is none, the machine's cores."""
    if machine.gpus:
        return machine.peak_flops * rates.train_mfu
    return rates.train_core_gflops * 1e9 * machine.cores


def train_config(config: "Config") -> TrainConfig:
    """Of the training that is planned; raises ConfigError for a network that can't be."""
    return TrainConfig(
        root="planned",
        run="planned",
        network=config.network,
        size=config.size,
        image_size=config.train_size,
        batch_size=config.batch_size,
    )
