"""Score a corpus: run signals over its shards and keep their values beside them, as columns.

    carrara score ROOT --signals caption image clip neighbours

Reads   ROOT/manifest.json, ROOT/shards/ (and what a signal itself reads: embeddings, an index)
Writes  ROOT/columns/<signal>/<shard>.parquet   uid + the signal's columns, one row a sample
        ROOT/columns/<signal>/stamp.json        the corpus and the parameters they follow from
        ROOT/columns/<signal>/manifest.json     sha256 of every file; written last

Scores are computed once and thresholded many times (`carrara select`). A signal of your own is a
class that fits `Signal`, given as "module:Class".
"""

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol, cast

import pyarrow as pa
from cyclopts import Parameter
from pydantic import Field

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import ConfigError, ShortfallError
from infra.records import read_record
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline.corpus import ColumnsManifest, Manifest, Shard, read_manifest, write_columns

MANY = Parameter(consume_multiple=True)
"""On the command line: --signals caption image."""

Options = Mapping[str, str | None]
"""What every signal is given beside the root: "encoder", and what `--options.NAME` adds."""


class Signal(Protocol):
    """A family of scores: a shard in, a table of values out.

    It is made as `Class(root, options)`, once in the command's own process and once in each
    worker, so the constructor checks its input and what is dear is loaded at the first shard.
    """

    name: str
    schema: pa.Schema
    """The columns that follow uid."""

    def identity(self) -> dict[str, Any]:
        """Parameters and model digests: all that decides the values. JSON-able."""

    def __call__(self, shard: Shard) -> pa.Table:
        """uid first, then the schema's columns; one row a sample."""


SIGNALS = {
    "caption": "pipeline.signals.caption:CaptionSignal",
    "image": "pipeline.signals.image:ImageSignal",
    "hashes": "pipeline.signals.hashes:HashesSignal",
    "placeholder": "pipeline.signals.placeholder:PlaceholderSignal",
    "safety": "pipeline.signals.safety:SafetySignal",
    "text_overlay": "pipeline.signals.text_overlay:TextOverlaySignal",
    "clip": "retrieval.neighbours:ClipSignal",
    "neighbours": "retrieval.neighbours:NeighboursSignal",
    "clip_safety": "retrieval.heads:ClipSafetySignal",
    "aesthetic": "retrieval.heads:AestheticSignal",
}
"""Named, not imported: curation needs no torch until a signal that does is asked for."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    signals: Annotated[tuple[str, ...], MANY] = Field(
        default=("caption", "image", "clip", "neighbours"), min_length=1
    )
    """Shipped ones by name, others as module:Class."""
    encoder: str | None = None
    """Whose embeddings and index `clip` and `neighbours` use; none: the only ones there are."""
    options: dict[str, str] = Field(default_factory=dict)
    """Handed to signals of your own."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace scores that were made with other parameters or on another corpus."""


def run(config: Config) -> Summary:
    """Raises ShortfallError naming the shards that a signal could not score."""
    with Stopwatch() as watch:
        manifest = read_manifest(config.root)
        options = _options(config)
        signals = [load_signal(name, config.root, options) for name in config.signals]
        for signal in signals:
            claim(
                _folder(config.root, signal), _stamp(signal, manifest), overwrite=config.overwrite
            )
        scored = _score(config, manifest, signals)
        for signal in signals:
            _publish_manifest(_folder(config.root, signal), signal, manifest, scored[signal.name])
    return Summary(
        stage="score",
        num_in=manifest.num_samples,
        num_out=manifest.num_samples,
        counts={signal.name: manifest.num_samples for signal in signals},
        seconds=watch.seconds,
        outputs={signal.name: _folder(config.root, signal) for signal in signals},
        details={"shards scored now": {name: len(files) for name, files in scored.items()}},
    )


def load_signal(reference: str, root: str, options: Options) -> Signal:
    """The signal that a shipped name or "module:Class" stands for, made for this corpus."""
    target = SIGNALS.get(reference, reference)
    module_name, _, class_name = target.partition(":")
    if not (module_name and class_name):
        raise ConfigError(
            f"signals {reference!r}: no such signal (there are: {', '.join(SIGNALS)}); "
            "name one of these, or one of your own as module:Class"
        )
    try:
        make = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(
            f"signals {reference!r}: {error}; expected module:Class that Python can import: is it "
            "installed, or in the folder you start from?"
        ) from error
    except AttributeError:
        raise ConfigError(
            f"signals {reference!r}: module {module_name} has no {class_name!r}; expected the "
            "name of a class in it"
        ) from None
    signal = make(root, options) if isinstance(make, type) else None
    if not re.fullmatch(r"\w+", str(getattr(signal, "name", ""))):
        raise ConfigError(
            f"signals {reference!r}: no signal; expected a class with `name` (letters, digits and "
            "_), `schema`, `identity` and a call that scores a shard"
        )
    return cast(Signal, signal)


@dataclass(frozen=True)
class Task:
    """One shard to be scored by one signal."""

    signal: str
    """As the configuration names it."""
    shard: Shard


def _score(config: Config, manifest: Manifest, signals: list[Signal]) -> dict[str, set[str]]:
    """Score the shards that have no values yet; returns the files written, by signal."""
    tasks, written = [], {}
    for reference, signal in zip(config.signals, signals, strict=True):
        done = set(storage.list_names(_folder(config.root, signal)))
        missing = [shard for shard in manifest.shards if f"{shard.name}.parquet" not in done]
        tasks += [Task(reference, shard) for shard in missing]
        written[signal.name] = {f"{shard.name}.parquet" for shard in missing}
    outcomes = map_on_workers(
        partial(_Scorer, config.root, _options(config)),
        tasks,
        workers=config.workers,
        description="score",
        unit="scores",
        size=lambda task: task.shard.num_samples,
    )
    failed = sorted(
        (one.item.signal, one.item.shard.name, one.error) for one in outcomes if one.error
    )
    if failed:
        names = ", ".join(f"{signal} {shard}" for signal, shard, _ in failed)
        raise ShortfallError(
            f"score {config.root}: {len(failed)} of {len(tasks)} shards failed ({names}; first "
            f"error: {failed[0][2]}); run the command again to score only these"
        )
    return written


class _Scorer:
    """What a worker does; a signal is loaded at its first shard and kept until another's."""

    def __init__(self, root: str, options: Options) -> None:
        self._root, self._options = root, options
        self._loaded: tuple[str, Signal] | None = None

    def __call__(self, task: Task) -> None:
        if self._loaded is None or self._loaded[0] != task.signal:
            signal = load_signal(task.signal, self._root, self._options)
            self._loaded = (task.signal, signal)
        _score_shard(self._loaded[1], self._root, task.shard)


def _score_shard(signal: Signal, root: str, shard: Shard) -> None:
    table = signal(shard)
    declared = ["uid", *signal.schema.names]
    if table.column_names != declared or table.num_rows != shard.num_samples:
        raise ConfigError(
            f"signal {signal.name}: gave {table.num_rows} rows of {', '.join(table.column_names)} "
            f"for shard {shard.name}, expected {shard.num_samples} rows of {', '.join(declared)}"
        )
    identity = json.dumps(signal.identity(), sort_keys=True)
    metadata = {"carrara.signal": signal.name, "carrara.identity": identity}
    write_columns(root, signal.name, shard.name, table.replace_schema_metadata(metadata))


def _publish_manifest(
    folder: str, signal: Signal, manifest: Manifest, scored_now: set[str]
) -> None:
    url = storage.join(folder, "manifest.json")
    # What was there before keeps its digest: a file damaged since must not be taken for good.
    known = read_record(url, ColumnsManifest).files if storage.exists(url) else {}
    names = [f"{shard.name}.parquet" for shard in manifest.shards]
    record = {
        "signal": signal.name,
        "identity": signal.identity(),
        "config_digest": _stamp(signal, manifest).config_digest,
        "corpus_digest": manifest.digest,
        "files": {
            name: storage.sha256(storage.join(folder, name))
            if name in scored_now or name not in known
            else known[name]
            for name in names
        },
    }
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    storage.sweep(folder)
    storage.publish_text(url, text)


def _options(config: Config) -> Options:
    return {"encoder": config.encoder, **config.options}


def _folder(root: str, signal: Signal) -> str:
    return storage.join(root, "columns", signal.name)


def _stamp(signal: Signal, manifest: Manifest) -> Stamp:
    identity = signal.identity()
    return Stamp(
        stage="score",
        input_digest=manifest.digest,
        config_digest=digest_of([signal.name, identity]),
        config=identity,
    )
