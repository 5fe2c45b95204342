"""Runs of pairs -> ROOT/pairs-00000.parquet and so on: each pair once, with its language.

The files together are sorted by uid, which is a hash: a download meets the hosts well mixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import digest_of
from infra.errors import ShortfallError
from pipeline.extraction import pair_dedup
from pipeline.extraction.extract_records import PAIRS, Run, manifest_url, spool_url
from pipeline.extraction.pair_dedup import PAIR_COLUMNS, Range

MERGED = "merged"

Task = TypeVar("Task")
Result = TypeVar("Result")


class Settings(Protocol):
    """What of the stage's configuration this needs."""

    @property
    def root(self) -> str: ...
    @property
    def rows_per_file(self) -> int: ...
    @property
    def workers(self) -> Workers: ...


@dataclass(frozen=True)
class Merge:
    """Runs to be made one."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class PairFile:
    """A range of the last runs, to be written as pairs."""

    name: str
    part: Range
    runs: tuple[Run, ...]


def write_pairs(config: Settings, runs: tuple[Run, ...]) -> dict[str, tuple[int, str]]:
    """(pairs, sha256) by file; what a killed command made of the same runs is kept."""
    _begin(config.root, runs)
    runs = _merge_levels(config, runs)
    parts = pair_dedup.ranges(sum(run.num_rows for run in runs), config.rows_per_file)
    tasks = [
        PairFile(f"{PAIRS}-{index:05d}.parquet", part, runs) for index, part in enumerate(parts)
    ]
    written = _map(config, PairFileWriter, tasks, "write", "files")
    return {task.name: written[task] for task in tasks}


def _begin(root: str, runs: tuple[Run, ...]) -> None:
    """Remove what was merged and written of other runs."""
    plan = spool_url(root, "plan.txt")
    digest = digest_of([run.model_dump() for run in runs])
    if storage.exists(plan) and storage.read_text(plan) == digest:
        return
    storage.remove(manifest_url(root))
    for folder, prefix in ((root, PAIRS), (spool_url(root), MERGED)):
        for name in storage.list_names(folder):
            if name.startswith(f"{prefix}-"):
                storage.remove(storage.join(folder, name))
    storage.publish_text(plan, digest)


def _merge_levels(config: Settings, runs: tuple[Run, ...]) -> tuple[Run, ...]:
    level = 0
    while len(runs) > pair_dedup.FAN_IN:
        level += 1
        tasks = [
            Merge(f"{MERGED}-{level}-{index:05d}.parquet", tuple(group))
            for index, group in enumerate(pair_dedup.groups(runs))
        ]
        merged = _map(config, Merger, tasks, f"merge, level {level}", "runs")
        runs = tuple(merged[task] for task in tasks)
    return runs


def _map(
    config: Settings,
    make: Callable[[str, int], Callable[[Task], Result]],
    tasks: list[Task],
    description: str,
    unit: str,
) -> dict[Task, Result]:
    results, failed = {}, []
    for outcome in map_on_workers(
        partial(make, config.root, config.rows_per_file),
        tasks,
        workers=config.workers,
        description=f"extract: {description}",
        unit=unit,
    ):
        if outcome.result is None:
            failed.append(str(outcome.error))
        else:
            results[outcome.item] = outcome.result
    if failed:
        raise ShortfallError(
            f"extract {config.root}: {description}: {len(failed)} of {len(tasks)} {unit} failed "
            f"(first error: {min(failed)}); run the command again to make them"
        )
    return results


class Merger:
    """What a worker does for a level."""

    def __init__(self, root: str, rows_a_range: int) -> None:
        self._folder, self._rows_a_range = spool_url(root), rows_a_range

    def __call__(self, task: Merge) -> Run:
        url = storage.join(self._folder, task.name)
        if storage.exists(url):
            return Run(name=task.name, num_rows=_num_rows(url))
        return pair_dedup.merge(self._folder, task.runs, task.name, self._rows_a_range)


class PairFileWriter:
    """What a worker does for a file; gives its number of pairs and its sha256."""

    def __init__(self, root: str, rows_a_range: int) -> None:
        from pipeline.language import Languages

        self._root, self._rows_a_range = root, rows_a_range
        self._languages = Languages()

    def __call__(self, task: PairFile) -> tuple[int, str]:
        url = storage.join(self._root, task.name)
        if not storage.exists(url):
            pairs = pair_dedup.merge_range(
                spool_url(self._root), task.runs, task.part, self._rows_a_range
            )
            # Only now: most of the web's captions are duplicates.
            languages = self._languages(pairs["caption"].to_pylist())
            pair, provenance = PAIR_COLUMNS[:2], PAIR_COLUMNS[2:]
            columns = {name: pairs[name] for name in pair} | languages
            columns |= {name: pairs[name] for name in provenance}
            storage.publish_table(url, pa.table(columns))
        return _num_rows(url), storage.sha256(url)


def _num_rows(url: str) -> int:
    with storage.open_read(url) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)
