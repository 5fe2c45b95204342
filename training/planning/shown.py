"""A plan as a table of stages, and what they would leave behind."""

import math
from typing import TYPE_CHECKING

import numpy as np

from infra.errors import ConfigError
from infra.planning.failures import MONTH_S, simulated_live_share
from infra.planning.fleet import Fleet, Store
from infra.planning.rates import Rates
from infra.planning.shown import (
    bytes_in_words,
    count_in_words,
    dollars_in_words,
    hours_in_words,
    seconds_in_words,
)
from infra.planning.stages import COLUMN_BYTES, Estimate
from infra.planning.workload import STATE_BYTES_PER_PARAMETER
from infra.summary import Summary
from pipeline.corpus import read_manifest
from training.planning.making import Plan, make_plan

if TYPE_CHECKING:
    from training.plan import Config

SIMULATED_LINKS = 100_000


def planned(config: "Config", fleet: Fleet, rates: Rates) -> Summary:
    """Raises ConfigError where nothing says how many pairs there are."""
    num_pairs = config.pairs
    if num_pairs is None:
        if config.root is None:
            raise ConfigError("how many pairs? Give --pairs, such as 5.85e9, or a corpus as ROOT")
        num_pairs = float(sum(read_manifest(config.root).counts.values()))
    plan = make_plan(config, fleet, rates, num_pairs)
    random = np.random.default_rng(config.seed)
    alive = simulated_live_share(
        MONTH_S * config.age_months,
        plan.stages[0].seconds,
        config.link_rot_per_month,
        SIMULATED_LINKS,
        random,
    )
    played = {one.stage: one.losses.simulated(one.undisturbed_s, random) for one in plan.stages}
    return Summary(
        stage="plan",
        num_in=round(num_pairs),
        num_out=round(plan.work.num_pictures),
        unit="pairs",
        counts={"kept for training": round(plan.work.num_kept)},
        outputs={"pictures": _pictures(config, plan, alive), **_left_behind(config, plan)},
        details={**_details(plan, played), "links_alive_simulated": alive},
        table=[*(_row(one, played[one.stage]) for one in plan.stages), _total(plan)],
    )


def _row(one: Estimate, played: float) -> dict[str, object]:
    demand = one.demand
    return {
        "stage": one.stage,
        "on": f"{one.num_machines} {one.machine}",
        "cores": one.num_cores,
        "GPUs": one.num_gpus,
        "hours": hours_in_words(one.hours),
        "dollars": dollars_in_words(one.dollars),
        "bound by": one.bound,
        "goodput": f"{one.goodput:.1%}",
        "simulated": f"{played:.1%}",
        "from the web": bytes_in_words(demand.web_bytes),
        "read": bytes_in_words(demand.read_bytes),
        "written": bytes_in_words(demand.written_bytes),
        "requests": count_in_words(demand.reads + demand.writes),
    }


def _total(plan: Plan) -> dict[str, object]:
    demands = [one.demand for one in plan.stages]
    return {
        "stage": "all",
        "on": "",
        "cores": max(one.num_cores for one in plan.stages),
        "GPUs": max(one.num_gpus for one in plan.stages),
        "hours": hours_in_words(sum(one.hours for one in plan.stages)),
        "dollars": dollars_in_words(
            sum(one.dollars for one in plan.stages) + _request_dollars(plan)
        ),
        "bound by": "",
        "goodput": "",
        "simulated": "",
        "from the web": bytes_in_words(sum(one.web_bytes for one in demands)),
        "read": bytes_in_words(sum(one.read_bytes for one in demands)),
        "written": bytes_in_words(sum(one.written_bytes for one in demands)),
        "requests": count_in_words(sum(one.reads + one.writes for one in demands)),
    }


def _pictures(config: "Config", plan: Plan, alive: float) -> str:
    return (
        f"{count_in_words(plan.work.num_pictures)}: of the links {plan.links_alive:.1%} are still "
        f"alive when their turn comes (simulated {alive:.1%}), of those {config.success_share:.0%} "
        "give a picture"
    )


def _left_behind(config: "Config", plan: Plan) -> dict[str, str]:
    """What would be written, by name."""
    work, store = plan.work, plan.fleet.store
    shards = work.num_pictures * work.sample_bytes
    kept = work.num_kept * work.sample_bytes
    embeddings = work.embedding_bytes(plan.encoder.dim)
    checkpoint = STATE_BYTES_PER_PARAMETER * plan.num_parameters
    columns = COLUMN_BYTES * work.num_pictures
    stored = shards + kept + embeddings + 2 * plan.index_bytes + columns
    return {
        "shards": f"{bytes_in_words(shards)}, and {bytes_in_words(kept)} of them packed anew",
        "embeddings": f"{bytes_in_words(embeddings)} (pictures and captions, {plan.encoder.dim})",
        "index": f"{plan.index_kind} for recall {config.recall:g}: "
        f"{bytes_in_words(plan.index_bytes)} of memory for each modality{_too_much(plan)}",
        "columns": f"{bytes_in_words(columns)} (caption, image, placeholder)",
        "checkpoint": f"{bytes_in_words(checkpoint)} ({plan.num_parameters / 1e6:,.0f} M "
        f"parameters), best every {seconds_in_words(plan.checkpoint_interval_s)}",
        "training": f"a step of {config.batch_size} takes {seconds_in_words(plan.step.seconds)}, "
        f"{plan.step.efficiency:.0%} of it computing",
        "stored": f"{bytes_in_words(stored)}, {dollars_in_words(_monthly(stored, store))} a month; "
        f"requests {dollars_in_words(_request_dollars(plan))}",
    }


def _too_much(plan: Plan) -> str:
    name, machine = plan.fleet.for_stage("index")
    has = 1e9 * machine.memory_gb
    return f", more than {name}'s {bytes_in_words(has)}" if plan.index_bytes > has else ""


def _details(plan: Plan, played: dict[str, float]) -> dict[str, object]:
    stages = {
        one.stage: {
            "machine": one.machine,
            "num_machines": one.num_machines,
            "num_cores": one.num_cores,
            "num_gpus": one.num_gpus,
            "hours": _finite(one.hours),
            "dollars": _finite(one.dollars),
            "bound": one.bound,
            "hours_by_resource": {name: s / 3600 for name, s in one.limits_s.items()},
            "goodput": one.goodput,
            "goodput_simulated": played[one.stage],
            "web_bytes": one.demand.web_bytes,
            "read_bytes": one.demand.read_bytes,
            "written_bytes": one.demand.written_bytes,
            "reads": one.demand.reads,
            "writes": one.demand.writes,
        }
        for one in plan.stages
    }
    return {
        "stages": stages,
        "index_kind": plan.index_kind,
        "index_bytes": plan.index_bytes,
        "links_alive": plan.links_alive,
        "num_parameters": plan.num_parameters,
        "checkpoint_interval_s": plan.checkpoint_interval_s,
        "step_s": plan.step.seconds,
        "step_efficiency": plan.step.efficiency,
        "request_dollars": _request_dollars(plan),
    }


def _finite(value: float) -> float | None:
    """None: never done, as machines are lost sooner than anything is finished."""
    return value if math.isfinite(value) else None


def _request_dollars(plan: Plan) -> float:
    store = plan.fleet.store
    reads = sum(one.demand.reads for one in plan.stages)
    writes = sum(one.demand.writes for one in plan.stages)
    return (reads * store.dollars_per_1000_reads + writes * store.dollars_per_1000_writes) / 1e3


def _monthly(num_bytes: float, store: Store) -> float:
    return num_bytes / 1e9 * store.dollars_per_gb_month
