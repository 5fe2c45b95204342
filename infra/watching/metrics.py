"""What Prometheus is told of a command at work, at http://HOST:PORT/metrics.

    carrara_progress_done   {stage, run, task, unit}   and carrara_progress_total, where it is known
    carrara_eta_seconds     {stage, run, task}         seconds to the task's end at its rate so far
    carrara_outcomes        {stage, run, status}       from the summary: rows or samples by status
    carrara_failures_total  {stage, run}               items that failed for good
    carrara_value           {stage, run, name}         what a stage measures of itself, as its loss
    carrara_up              {stage, run}               1 while the command is at work

Read from the run when asked; a registry a run, beside the process's own figures.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.errors import ConfigError
from infra.watching.run import Run, State


class RunCollector(Collector):
    def __init__(self, run: Run) -> None:
        self._run = run

    def collect(self) -> Iterator[Metric]:
        own = [self._run.stage, self._run.name]
        yield _gauge(
            "up", "1 while the command is at work", {(): self._run.state is State.RUNNING}, own
        )
        tasks = list(self._run.tasks)
        yield _gauge(
            "progress_done",
            "Units done",
            {(t.name, t.unit): t.done for t in tasks},
            own,
            "task",
            "unit",
        )
        totals = {(t.name, t.unit): t.total for t in tasks if t.total is not None}
        yield _gauge("progress_total", "Units in all", totals, own, "task", "unit")
        left = {(t.name,): t.seconds_left for t in tasks if t.seconds_left is not None}
        yield _gauge("eta_seconds", "Seconds to the task's end at its rate", left, own, "task")
        values = {(name,): value for name, value in list(self._run.values.items())}
        yield _gauge("value", "What the stage measures of itself", values, own, "name")
        counts = self._run.summary.counts if self._run.summary else {}
        yield _gauge("outcomes", "By status", {(s,): n for s, n in counts.items()}, own, "status")
        failures = CounterMetricFamily("carrara_failures", "Items that failed for good", labels=OWN)
        failures.add_metric(own, self._run.num_failed)
        yield failures


OWN = ["stage", "run"]


def _gauge(
    name: str, text: str, values: Mapping[Any, float], own: list[str], *labels: str
) -> GaugeMetricFamily:
    """`values` by the further labels' values, in their order."""
    family = GaugeMetricFamily(f"carrara_{name}", text, labels=[*OWN, *labels])
    for key, value in values.items():
        family.add_metric([*own, *key], value)
    return family


@contextmanager
def served(run: Run, address: str) -> Iterator[None]:
    """Answers at PORT or HOST:PORT, on this machine alone where no host is named."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(RunCollector(run))
    if not port.isdecimal():
        raise ConfigError(f"--metrics {address}: expected PORT or HOST:PORT, such as 0.0.0.0:9400")
    try:
        server, thread = start_http_server(int(port), host or "127.0.0.1", registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--metrics {address}: can't listen there ({error}); expected a free port here"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
