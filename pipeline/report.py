"""The corpus, what was done to it and what was learned from it, as one offline page.

    carrara report ROOT --selection good --packed OUT --run RUN --query query.png --output r.html

Reads   ROOT/manifest.json, ROOT/runs/, ROOT/columns/, ROOT/selections/; OUT/manifest.json and
        OUT/runs/; RUN/metrics.jsonl, RUN/samples/*.png, RUN/runs/; the pictures given by path
Writes  ROOT/report.html: no script, no request, every picture within it
        ROOT/README.md    the data card, in the form that dataset hubs read (see card.py)

A section whose input isn't there is left out. Large corpora are looked at through evenly spaced
shards, and the page says so.
"""

import io
import json
from collections.abc import Iterator
from typing import Annotated, Any

import fsspec
import numpy as np
import pyarrow as pa
from cyclopts import Parameter
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import DamagedError, InputError
from infra.progress import track
from infra.records import read_mapping
from infra.summary import Stopwatch, Summary
from infra.watching.runs import RecordedRun, finished_runs, iter_runs
from pipeline.corpus import SUCCESS, Manifest, read_manifest, read_selection, selection_url
from pipeline.pages import charts, gallery
from pipeline.pages.card import card_text, check_own
from pipeline.pages.census import Census, take_census
from pipeline.pages.page import REPORT, render
from pipeline.selecting.policy import Policy

MANY = Parameter(consume_multiple=True)
"""On the command line: --query cat.png dog.png."""

EMBEDDED = ("PNG", "JPEG", "WEBP", "GIF")
"""What a browser shows; Pillow asks no other of its plugins."""

FETCHED = "pictures with captions"
"""The funnel's step between fetching and selecting."""

Section = dict[str, Any]
"""What the template draws; empty: leave the section out."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    output: Annotated[Place | None, EXECUTION_ONLY] = None
    """Where the page goes; none: ROOT/report.html."""
    card: Annotated[Place | None, EXECUTION_ONLY] = None
    """Where the data card goes; none: ROOT/README.md."""
    licence: str | None = None
    """Of the dataset as a whole, as the hub spells it ("cc-by-4.0"): told on the card."""
    dollars_per_hour: float | None = Field(default=None, ge=0)
    """What the machines that did the work cost together, for the price of what was kept."""
    title: str | None = None
    """The page's heading; none: the corpus folder's name."""
    selection: str | None = None
    """The selection to show; none: the only one there is."""
    packed: Annotated[Place | None, EXECUTION_ONLY] = None
    """The corpus that was packed from it."""
    run: Annotated[Place | None, EXECUTION_ONLY] = None
    """The training run to show."""
    query: Annotated[tuple[str, ...], MANY, EXECUTION_ONLY] = ()
    """Contact sheets of searches, as pictures."""
    samples: Annotated[tuple[str, ...], MANY, EXECUTION_ONLY] = ()
    """Sampled pictures; none: RUN/samples/*.png."""
    strip: Annotated[tuple[str, ...], MANY, EXECUTION_ONLY] = ()
    """Denoising strips; none: those of RUN/samples/*.png with "strip" in their names."""
    show: Annotated[tuple[str, ...], MANY, EXECUTION_ONLY] = ()
    """Samples by uid, to show with what became of them."""


def run(config: Config) -> Summary:
    with Stopwatch() as watch, track("report", 4, "parts") as bar:
        manifest = read_manifest(config.root)
        card = config.card or storage.join(config.root, "README.md")
        check_own(card)
        corpus = _corpus_sections(config, manifest)
        bar.advance(2)
        stages = _stages(config, manifest)
        page = {
            "title": config.title or _name(config.root),
            "digests": _digests(config, manifest),
            "stages": stages,
            "goodput": _goodput(config, corpus["funnel"]),
            "sheets_of_queries": [_embedded(url) for url in config.query],
            "training": _training(config.run),
            **corpus,
            **_sampled(config),
        }
        bar.advance(1)
        output = config.output or storage.join(config.root, REPORT)
        storage.publish_text(output, render("report.html", page))
        facts = {"manifest": manifest, "licence": config.licence}
        storage.publish_text(card, card_text(page | facts))
        bar.advance(1)
    return Summary(
        stage="report",
        num_in=manifest.num_samples,
        num_out=manifest.num_samples,
        seconds=watch.seconds,
        outputs={"page": output, "card": card},
        details={"size_bytes": storage.size_bytes(output)},
    )


# The corpus and its selection


def _corpus_sections(config: Config, manifest: Manifest) -> Section:
    from pipeline.select import read_signals

    name = _selection_name(config)
    signals = read_signals(config.root, manifest, None)
    selection = read_selection(config.root, name) if name else None
    census = take_census(config.root, manifest, signals, name)
    record = _read_record(config.root, name)
    policy = Policy.model_validate(record["policy"]) if record else None
    rows = gallery.sample_rows(config.root, manifest, list(signals), selection)
    kept, dropped = gallery.examples(config.root, manifest, rows, policy)
    return {
        "policy": policy,
        "selection": name,
        "census": census,
        "groups": _groups(config.root, manifest, census),
        "funnel": _funnel(manifest, policy, record),
        "histograms": list(_histograms(rows, policy)),
        "kept": kept,
        "dropped": dropped,
        "shown": gallery.look_up(config.root, manifest, list(signals), selection, config.show),
        "num_rows_seen": rows.num_rows,
        "num_samples": manifest.num_samples,
    }


def _groups(root: str, manifest: Manifest, census: Census) -> list[Section]:
    """Copies with their pictures, the one that stays first."""
    uids = [uid for group in census.groups for uid in group.uids]
    pictures = gallery.pictures_of(root, manifest, uids)
    return [
        {
            "num": group.num,
            "evidence": group.evidence,
            "pictures": [pictures[uid] for uid in group.uids if uid in pictures],
        }
        for group in census.groups
    ]


def _selection_name(config: Config) -> str | None:
    if config.selection is not None:
        return config.selection
    names = storage.list_names(storage.join(config.root, "selections"))
    names = [name.removesuffix(".toml") for name in names if name.endswith(".toml")]
    if len(names) > 1:
        raise InputError(
            f"{config.root}: several selections: {', '.join(names)}; say which with --selection"
        )
    return names[0] if names else None


def _read_record(root: str, selection: str | None) -> Section:
    if selection is None:
        return {}
    return read_mapping(selection_url(root, selection, ".toml"))


def _funnel(manifest: Manifest, policy: Policy | None, record: Section) -> list[Section]:
    """Step by step: how many are left, how many went, why, and where that threshold is from."""
    total = max(sum(manifest.counts.values()), manifest.num_samples, 1)
    steps = []

    def step(label: str, gone: int, left: int, source: str = "", kind: str = "") -> None:
        shares = {"left_share": 100 * left / total, "gone_share": 100 * gone / total}
        steps.append({"label": label, "gone": gone, "left": left, "source": source, "kind": kind})
        steps[-1] |= shares

    left = total
    step("rows in the list", 0, left, kind="milestone")
    for reason, num in sorted(manifest.counts.items(), key=lambda one: -one[1]):
        if reason != SUCCESS:
            left -= num
            step(reason.replace("_", " "), num, left, kind="fetch")
    step(FETCHED, 0, left, kind="milestone")
    for rule in policy.rules if policy else ():
        gone = record["counts"].get(rule.name, 0)
        left -= gone
        step(rule.name, gone, left, source=rule.source, kind="rule")
    if policy:
        step("kept", 0, left, kind="milestone")
    return steps


def _histograms(rows: pa.Table, policy: Policy | None) -> Iterator[Section]:
    """Of every score that a rule looks at: what it kept and what it dropped."""
    if policy is None:
        for column in gallery.score_columns(rows):
            yield from _histogram(column, "", gallery.values(rows, column), np.empty(0))
        return
    for index, rule in enumerate(policy.rules):
        passed, failed = gallery.split(rows, policy, index)
        for column in gallery.columns_of(rule, rows):
            yield from _histogram(
                column, rule.keep, gallery.values(passed, column), gallery.values(failed, column)
            )


def _histogram(
    column: str, rule: str, passed: charts.Values, failed: charts.Values
) -> Iterator[Section]:
    both = np.concatenate([passed, failed])
    if np.unique(both).size > 1:  # a column of one value tells nothing
        yield {
            "column": column,
            "rule": rule,
            "num_failed": failed.size,
            "num": both.size,
            "chart": charts.histogram(passed, failed),
        }


# The stages


def _stages(config: Config, manifest: Manifest) -> list[Section]:
    """One line a stage, in the order in which they first ran."""
    homes = [home for home in (config.root, config.packed, config.run) if home]
    lines: dict[str, Section] = {}
    for run in finished_runs(homes):
        before = lines.get(run.stage)
        # A second run of a finished stage takes no time: show the one that did the work.
        if before and (before["in"], before["out"]) == (run.num_in, run.num_out):
            before["seconds"] = max(before["seconds"], run.seconds)
            continue
        lines[run.stage] = {
            "stage": run.stage,
            "in": run.num_in,
            "out": run.num_out,
            "unit": run.unit,
            "seconds": run.seconds,
            "size": _size_of(run, manifest),
        }
    longest = max((line["seconds"] for line in lines.values()), default=0) or 1
    return [line | {"share": 100 * line["seconds"] / longest} for line in lines.values()]


def _goodput(config: Config, funnel: list[Section]) -> Section:
    """What the work came to: samples kept an hour, hours and dollars a million kept. Runs that
    failed or were killed count too: what they did is paid for, and those after them went on."""
    homes = [home for home in (config.root, config.packed) if home]
    runs = list(iter_runs(homes))
    seconds = sum(run.seconds for run in runs)
    fetching = sum(run.seconds for run in runs if run.stage == "download")
    num_rows, num_kept = funnel[0]["left"], funnel[-1]["left"]
    if not seconds or not num_kept:
        return {}
    num_fetched = next(step["left"] for step in funnel if step["label"] == FETCHED)
    hours_a_million = seconds / 3600 / num_kept * 1e6
    price = config.dollars_per_hour
    return {
        "seconds": seconds,
        "rows_per_s": num_rows / fetching if fetching else None,
        "successes_per_s": num_fetched / fetching if fetching else None,
        "kept_per_s": num_kept / seconds,
        "hours_a_million": hours_a_million,
        "dollars_a_million": None if price is None else price * hours_a_million,
        "dollars_per_hour": price,
    }


def _size_of(run: RecordedRun, manifest: Manifest) -> int | None:
    if "size_bytes" in run.details:
        return int(run.details["size_bytes"])
    if run.stage == "download":
        return sum(shard.num_bytes for shard in manifest.shards)
    sizes = [_total_bytes(url) for url in run.outputs.values()]
    return sum(sizes) or None


# The model


def _training(run: str | None) -> Section:
    if run and not storage.list_names(run):
        raise InputError(f"run {run}: nothing is there; expected what `carrara train` wrote")
    url = storage.join(run, "metrics.jsonl") if run else ""
    if not url or not storage.exists(url):
        return {}
    try:
        lines = [json.loads(line) for line in storage.read_text(url).splitlines()]
    except ValueError as error:
        raise DamagedError(f"{url}: damaged ({error}), expected a JSON object a line") from None
    lines = [line for line in lines if line.get("loss") is not None]
    if len(lines) < 2:
        return {}
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
    return {
        "curve": charts.curve(steps, losses),
        "num_steps": steps[-1],
        "first_loss": losses[0],
        "last_loss": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "images_per_s": float(np.median(speeds)) if speeds else None,
    }


def _sampled(config: Config) -> Section:
    """Sampled pictures and denoising strips, those named or those that lie in RUN/samples."""
    there: list[str] = []
    if config.run:
        folder = storage.join(config.run, "samples")
        names = [name for name in storage.list_names(folder) if name.endswith(".png")]
        there = [storage.join(folder, name) for name in names]
    samples = config.samples or [url for url in there if "strip" not in _name(url)]
    strips = config.strip or [url for url in there if "strip" in _name(url)]
    return {"samples": list(map(_embedded, samples)), "strips": list(map(_embedded, strips))}


# What the sections share


def _digests(config: Config, manifest: Manifest) -> list[tuple[str, str]]:
    digests = [("corpus", manifest.digest), ("list", manifest.input_digest)]
    record = _read_record(config.root, _selection_name(config))
    if record:
        digests.append(("policy", record["policy_digest"]))
    if config.packed:
        digests.append(("packed", read_manifest(config.packed).digest))
    return digests


def _embedded(url: str) -> Section:
    """A picture as a part of the page."""
    kinds = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp", "gif": "gif"}
    kind = kinds.get(url.rpartition(".")[2].lower())
    if kind is None:
        raise InputError(f"{url}: not a picture by its name; expected .png, .jpg, .webp or .gif")
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise InputError(f"{url}: no such picture; make it first, or leave it out") from None
    try:
        words = _in_words(data)
    except UnidentifiedImageError:
        raise InputError(f"{url}: not a picture; make it again, or leave it out") from None
    return {"words": words or _name(url), "source": gallery.data_url(data, kind)}


def _in_words(picture: bytes) -> str:
    """The captions that `sample` leaves in its PNGs, for those who can't see the picture."""
    with Image.open(io.BytesIO(picture), formats=EMBEDDED) as image:
        captions = image.info.get("captions")
    return ", ".join(json.loads(captions)) if captions else ""


def _total_bytes(url: str) -> int:
    """Of a file, or of all that is in a folder."""
    filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return int(filesystem.du(path)) if filesystem.exists(path) else 0


def _name(url: str) -> str:
    """The last part of a URL, without an extension."""
    return url.rstrip("/").rpartition("/")[2].partition(".")[0]
