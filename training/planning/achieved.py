"""What was predicted beside what was achieved.

Reads   ROOT/runs/, ROOT/manifest.json, RUN/run.json, RUN/metrics.jsonl
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infra import storage
from infra.errors import InputError
from infra.planning.fleet import Fleet
from infra.planning.rates import Rates
from infra.planning.shown import seconds_in_words
from infra.planning.stages import download_demand, embed_demand, estimate, index_demand, pack_demand
from infra.planning.workload import Workload
from infra.records import read_mapping
from infra.summary import Summary
from pipeline.corpus import read_manifest
from retrieval.indexing.kinds import num_lists
from training.log import read_metrics
from training.network import flops_per_image
from training.planning.calibration import cost_of
from training.planning.making import NUM_CAPTION_TOKENS, device_flops
from training.record import read_record

if TYPE_CHECKING:
    from training.plan import Config

START_S = {"download": 8.0, "embed": 8.0, "index": 1.5, "pack": 1.5}
"""Before the first shard: of a command that starts Ray 8 to 10 s (docs/download.md), else imports.
The stages that are planned and leave records."""


def compared(config: "Config", fleet: Fleet, rates: Rates) -> Summary:
    """Raises InputError where there is nothing to compare."""
    table = list(_rows(config, fleet, rates))
    if not table:
        raise InputError(
            f"{config.root or config.run or '--achieved'}: no run of a stage that is planned; "
            "expected a corpus with runs/ as ROOT, or a training run as --run"
        )
    return Summary(
        stage="plan",
        num_in=len(table),
        num_out=len(table),
        unit="runs",
        table=table,
        details={"fleet": fleet.model_dump()},
    )


def _rows(config: "Config", fleet: Fleet, rates: Rates) -> Iterator[dict[str, object]]:
    if config.root is not None:
        for stage, record in _newest(config.root).items():
            predicted, bound = _predicted_s(stage, record, config, fleet, rates)
            yield _row(stage, record["num_in"], predicted, record["seconds"], bound)
    if config.run is not None:
        yield _train_row(config.run, fleet, rates)


def _row(
    stage: str, num_in: int, predicted_s: float, achieved_s: float, bound: str
) -> dict[str, object]:
    return {
        "stage": stage,
        "rows": num_in,
        "predicted": seconds_in_words(predicted_s),
        "achieved": seconds_in_words(achieved_s),
        "achieved / predicted": round(achieved_s / predicted_s, 2),
        "bound by": bound,
    }


def _newest(root: str) -> dict[str, dict[str, Any]]:
    """Each planned stage's last run that did something."""
    runs: dict[str, dict[str, Any]] = {}
    folder = storage.join(root, "runs")
    for name in sorted(storage.list_names(folder)):
        stage = name.removesuffix(".json").rpartition("-")[2]
        if stage in START_S:
            record = read_mapping(storage.join(folder, name))
            if record["num_in"]:
                runs[stage] = record
    return {stage: runs[stage] for stage in START_S if stage in runs}


def _predicted_s(
    stage: str, record: dict[str, Any], config: "Config", fleet: Fleet, rates: Rates
) -> tuple[float, str]:
    assert config.root is not None
    work = _workload(config.root, config, record)
    _, machine = fleet.for_stage(stage)
    if stage == "download":
        demand = download_demand(work, rates)
    elif stage == "embed":
        encoder = cost_of(record["details"]["encoder"])
        flops = encoder.flops(NUM_CAPTION_TOKENS)
        demand = embed_demand(work, rates, machine, flops, encoder.dim)
    elif stage == "index":
        dim = cost_of(record["details"]["encoder"]).dim
        lists = num_lists(record["num_in"])
        demand = index_demand(work, rates, dim, lists, 4.0 * dim * record["num_in"])
    else:
        demand = pack_demand(replace(work, kept_share=record["num_out"] / record["num_in"]), rates)
    made = estimate(stage, demand, fleet, rates)
    return START_S[stage] + made.seconds, made.bound


def _workload(root: str, config: "Config", record: dict[str, Any]) -> Workload:
    """That of this run: what it was given, whatever the corpus holds now."""
    manifest = read_manifest(root)
    num_samples = manifest.num_samples
    num_rows = sum(manifest.counts.values())
    of_rows = record["stage"] == "download"
    return Workload(
        num_pairs=record["num_in"] if of_rows else num_rows * record["num_in"] / num_samples,
        live_share=num_samples / num_rows,
        image_size=manifest.config.get("image_size", config.image_size),
        fetched_bytes=1e3 * config.fetched_kb,
        samples_per_shard=manifest.config.get("number_sample_per_shard", config.samples_per_shard),
        kept_share=1.0,
    )


def _train_row(run: str, fleet: Fleet, rates: Rates) -> dict[str, object]:
    """By what the log says of speed, so that neither start nor pauses count."""
    train = read_record(run).config
    lines = read_metrics(run)
    if not lines:
        raise InputError(f"{run}: no metrics yet; train for a while first")
    _, machine = fleet.for_stage("train")
    num_devices = machine.count * (machine.gpus or 1)
    flops = flops_per_image(train).training
    predicted = device_flops(machine, rates) * num_devices / flops
    achieved = statistics.median(line["images_per_s"] for line in lines)
    num_images = lines[-1]["step"] * train.batch_size
    return _row("train", num_images, num_images / predicted, num_images / achieved, "steps")
