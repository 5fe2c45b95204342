"""Score a corpus: run signals over its shards and keep their values beside them, as columns.

    carrara score ROOT
    carrara score ROOT --signals safety text_overlay
    carrara score ROOT --signals aesthetic --options.aesthetic-head PATH

Reads   ROOT/manifest.json, ROOT/shards/ (and what a signal itself reads: embeddings, an index)
Writes  ROOT/columns/<signal>/<shard>.parquet   uid + the signal's columns, one row a sample
        ROOT/columns/<signal>/stamp.json        the corpus and the parameters they follow from
        ROOT/columns/<signal>/manifest.json     sha256 of every file; written last

Scores are computed once and thresholded many times (`carrara select`). Each column's metadata names
the models behind it with the sha256 of their weights, and the file's all that decides the values. A
signal of your own is a class that fits `Signal`, given as "module:Class".
"""

import importlib
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol, cast, runtime_checkable

import pyarrow as pa
from cyclopts import Parameter
from pydantic import Field

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ConfigError, ShortfallError
from infra.stamp import claim
from infra.summary import Stopwatch, Summary
from infra.watching.events import tell
from pipeline.corpus import Manifest, Shard, read_manifest
from pipeline.scored import folder_of, publish_manifest, score_shard, stamp_of

MANY = Parameter(consume_multiple=True)
"""On the command line: --signals caption image."""

Options = Mapping[str, str | None]
"""What every signal is given beside the root: "encoder"; "num_threads" and "device" ("cpu" or
"cuda"), its worker's share; and what `--options.NAME` adds."""

PLACES = ("clip_safety_head", "aesthetic_head", "targets", "examples")
"""Options that name a file: made absolute, so that workers anywhere find it."""


class Signal(Protocol):
    """A family of scores: a shard in, a table of values out.

    It is made as `Class(root, options)`, once in the command's own process and once in each
    worker, so the constructor checks its input and what is dear is loaded at the first shard.
    """

    name: str
    schema: pa.Schema
    """The columns that follow uid."""

    def identity(self) -> dict[str, Any]:
        """Parameters and model digests: all that decides the values. JSON-able.

        Under "models", for each column that models give: {column: {model: sha256 of its weights}}.
        """

    def __call__(self, shard: Shard) -> pa.Table:
        """uid first, then the schema's columns; one row a sample."""


@runtime_checkable
class CorpusSignal(Signal, Protocol):
    """A signal that has to see the whole corpus before it can score a shard of it."""

    def prepared(self) -> AbstractContextManager[None]:
        """Entered once, in the command's own process, for as long as shards are scored."""


SIGNALS = {
    "caption": "pipeline.signals.caption:CaptionSignal",
    "image": "pipeline.signals.image:ImageSignal",
    "hashes": "pipeline.signals.hashes:HashesSignal",
    "placeholder": "pipeline.signals.placeholder:PlaceholderSignal",
    "safety": "pipeline.signals.safety:SafetySignal",
    "text_overlay": "pipeline.signals.text_overlay:TextOverlaySignal",
    "clip": "retrieval.signals.neighbours:ClipSignal",
    "neighbours": "retrieval.signals.neighbours:NeighboursSignal",
    "masked_clip": "retrieval.signals.masked:MaskedClipSignal",
    "image_based": "retrieval.signals.clusters:ImageBasedSignal",
    "clip_safety": "retrieval.signals.heads:ClipSafetySignal",
    "aesthetic": "retrieval.signals.heads:AestheticSignal",
}
"""Named, not imported: curation needs no torch until a signal that does is asked for."""

CHEAP = ("caption", "image", "placeholder")
"""Thousands of samples a second, from the shards alone."""

NEEDS = {"clip": ("embeddings", "manifest.json"), "neighbours": ("index", "index.json")}
"""Scored by default where ROOT/<folder>/<encoder>/<file> is there to score by."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    signals: Annotated[tuple[str, ...] | None, MANY] = Field(default=None, min_length=1)
    """Shipped ones by name, others as module:Class; none: caption, image and placeholder, with clip
    where there are embeddings and neighbours where there is an index."""
    encoder: str | None = None
    """Whose embeddings and index `clip` and `neighbours` use; none: the only ones there are."""
    options: dict[str, str] = Field(default_factory=dict)
    """What single signals take: clip-safety-head, aesthetic-head, targets, examples, k-max,
    temperature, memory-limit, or whatever one of your own asks for."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace scores that were made with other parameters or on another corpus."""


def run(config: Config) -> Summary:
    """Raises ShortfallError naming the shards that a signal could not score."""
    with Stopwatch() as watch:
        manifest = read_manifest(config.root)
        options = _options(config)
        names = config.signals or default_signals(config.root, config.encoder)
        signals = {name: load_signal(name, config.root, options) for name in names}
        for signal in signals.values():
            claim(
                folder_of(config.root, signal),
                stamp_of(signal, manifest),
                overwrite=config.overwrite,
            )
        scored = _score(config, manifest, signals)
        nulls = {
            signal.name: publish_manifest(config.root, signal, manifest, scored[signal.name])
            for signal in signals.values()
        }
    return Summary(
        stage="score",
        num_in=manifest.num_samples,
        num_out=manifest.num_samples,
        counts=_counts(manifest, nulls),
        seconds=watch.seconds,
        outputs={signal.name: folder_of(config.root, signal) for signal in signals.values()},
        details={
            "shards scored now": {name: len(files) for name, files in scored.items()},
            "nulls": {name: columns for name, columns in nulls.items() if columns},
        },
    )


def default_signals(root: str, encoder: str | None) -> tuple[str, ...]:
    """What costs little, and what there are embeddings for; says what it leaves out.

    An encoder that was named is one whose embeddings the user counts on.
    """
    names = list(CHEAP)
    for name, (folder, file) in NEEDS.items():
        base = storage.join(root, folder)
        found = (storage.join(base, slug, file) for slug in storage.list_names(base))
        if encoder is not None or any(map(storage.exists, found)):
            names.append(name)
        else:
            tell("note", f"score: {root} has no {folder} yet, so without {name}")
    return tuple(names)


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


def _score(
    config: Config, manifest: Manifest, signals: Mapping[str, Signal]
) -> dict[str, set[str]]:
    """Score the shards that have no values yet; returns the files written, by signal."""
    tasks, written = [], {}
    with ExitStack() as prepared:
        for reference, signal in signals.items():
            done = set(storage.list_names(folder_of(config.root, signal)))
            missing = [shard for shard in manifest.shards if f"{shard.name}.parquet" not in done]
            tasks += [Task(reference, shard) for shard in missing]
            written[signal.name] = {f"{shard.name}.parquet" for shard in missing}
            if missing and isinstance(signal, CorpusSignal):
                prepared.enter_context(signal.prepared())
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
        score_shard(self._loaded[1], self._root, task.shard)


def _counts(manifest: Manifest, nulls: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Samples by signal, and how many of them it could not score in full."""
    counts = {}
    for name, columns in nulls.items():
        counts[name] = manifest.num_samples
        if columns:
            counts[f"{name} with nulls"] = max(columns.values())
    return counts


def _options(config: Config) -> Options:
    """The user's options by their Python names, after what every signal is given."""
    workers = config.workers
    own = {name.replace("-", "_"): value for name, value in config.options.items()}
    places = {name: storage.absolute(own[name]) for name in PLACES if name in own}
    return {
        "encoder": config.encoder,
        "num_threads": str(max(1, int(workers.cpus_per_worker))),
        "device": "cuda" if workers.gpus_per_worker else "cpu",
        **own,
        **places,
    }
