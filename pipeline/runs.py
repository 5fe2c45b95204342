"""What ran on a corpus or a training, when, how it went, what it cost and what it made.

    carrara runs ROOT
    carrara runs ROOT PACKED RUN --dollars-per-hour 1.2 --output runs.html

Reads   runs/ of each place
Writes  one HTML file if asked, with no script and no request
"""

from typing import Annotated, Any

from pydantic import Field

from infra import storage
from infra.config import POSITIONAL, Address, Place, StageConfig
from infra.errors import InputError
from infra.summary import Stopwatch, Summary
from infra.watching.run import State
from infra.watching.runs import RecordedRun, iter_runs


class Config(StageConfig):
    places: Annotated[tuple[Place, ...], POSITIONAL]
    """Corpora and training runs."""
    output: Place | None = None
    """Also write this page."""
    dollars_per_hour: float | None = Field(default=None, ge=0)
    """What the machines that did the work cost together."""
    dashboard: Address | None = None
    """Address of Ray's dashboard, to be linked on the page beside those that the runs know of."""


def run(config: Config) -> Summary:
    """Raises InputError where nothing ran."""
    with Stopwatch() as watch:
        runs = list(iter_runs(config.places))
        if not runs:
            raise InputError(
                f"{', '.join(config.places)}: nothing ran here (no runs/); expected a corpus or a "
                "training run that a command has worked on"
            )
        outputs = {}
        if config.output is not None:
            storage.publish_text(config.output, _page(config, runs))
            outputs["page"] = config.output
    return Summary(
        stage="runs",
        num_in=len(runs),
        num_out=sum(one.state is State.DONE for one in runs),
        unit="runs",
        counts=_counts(runs),
        seconds=watch.seconds,
        outputs=outputs,
        details={"runs": [_as_json(one, config.dollars_per_hour) for one in runs]},
        table=[_row(one, config.dollars_per_hour) for one in runs],
    )


def _counts(runs: list[RecordedRun]) -> dict[str, int]:
    standings = [one.standing for one in runs]
    return {standing: standings.count(standing) for standing in dict.fromkeys(standings)}


def _row(one: RecordedRun, price: float | None) -> dict[str, object]:
    began = "" if one.started is None else one.started.strftime("%Y-%m-%d %H:%M:%S")
    row: dict[str, object] = {"started (UTC)": began, "stage": one.stage, "state": one.standing}
    row |= {
        "in": one.num_in,
        "out": one.num_out,
        "unit": one.unit,
        "seconds": round(one.seconds, 1),
    }
    if price is not None:
        row["dollars"] = round(_cost(one, price), 4)
    return row | {"what": one.error or _progress(one) or _digests(one)}


def _progress(one: RecordedRun) -> str:
    """How far the last task of a run that isn't done has come."""
    if one.state is State.DONE or not one.progress:
        return ""
    task = one.progress[-1]
    of_total = "" if task.total is None else f" of {task.total:,}"
    left = "" if task.seconds_left is None else f", {task.seconds_left:,.0f} s to go"
    return f"{task.name}: {task.done:,}{of_total} {task.unit}{left}"


def _digests(one: RecordedRun) -> str:
    return ", ".join(f"{name} {digest}" for name, digest in one.digests.items())


def _cost(one: RecordedRun, price: float) -> float:
    return one.seconds / 3600 * price


def _as_json(one: RecordedRun, price: float | None) -> dict[str, Any]:
    told = one.model_dump(mode="json", by_alias=True) | {
        "standing": one.standing,
        "seconds": one.seconds,
    }
    return told if price is None else told | {"dollars": _cost(one, price)}


def _page(config: Config, runs: list[RecordedRun]) -> str:
    from pipeline.pages.page import render

    price = config.dollars_per_hour
    longest = max(one.seconds for one in runs) or 1.0
    rows = [
        _row(one, price)
        | {"host": one.host, "home": one.home, "counts": one.counts, "outputs": one.outputs}
        | {"share": 100 * one.seconds / longest, "digests": one.digests}
        | {"dashboard": one.dashboard}
        for one in reversed(runs)
    ]
    total = sum(one.seconds for one in runs)
    return render(
        "runs.html",
        {
            "places": config.places,
            "rows": rows,
            "num_runs": len(runs),
            "counts": _counts(runs),
            "seconds": total,
            "dollars": None if price is None else total / 3600 * price,
            "dashboard": config.dashboard,
        },
    )
