"""Choose what to keep: a policy, in SQL over the columns -> a selection with reasons.

    carrara select ROOT --name good --policy recommended
    carrara select ROOT --name long --where "num_words > 3 AND caption NOT LIKE '%stock%'"

Reads   ROOT/manifest.json, ROOT/shards/*.parquet, ROOT/columns/*/*.parquet
Writes  ROOT/selections/<name>.parquet   uid, keep, weight, reason: one row a sample, in key order
        ROOT/selections/<name>.toml      the policy, its digest and the corpus's; written last
        ROOT/dry-run.html                instead, with --dry-run: what the rules would do

The first rule that is not true gives the reason; NULL (a score that could not be computed) is not
true. Rules see the shards' own columns (caption, url, width, ...) and those of every signal, each
signal also as a table of its name, for thresholds such as a quantile. DuckDB does the work, within
`memory_limit`; no Ray. What is read is first held against the digests it was written with.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from infra.progress import track
from infra.records import read_mapping, read_record
from infra.summary import Stopwatch, Summary
from pipeline.corpus import (
    ColumnsManifest,
    Manifest,
    list_signals,
    read_manifest,
    selection_url,
)
from pipeline.selecting.policy import KEPT, Policy, load_policy, policy_of, shipped_policies
from pipeline.selecting.samples_sql import check_digests, failure, first_line, open_samples
from pipeline.selecting.thresholds import NUMBER

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROWS_A_BATCH = 1 << 18

SELECTION_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("keep", pa.bool_()),
        ("weight", pa.float32()),
        ("reason", pa.string()),
    ]
)


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    name: str = Field(pattern=r"^[\w][\w.-]*$")
    """What the selection is called."""
    policy: str | None = None
    """A shipped policy by name, or a TOML file of rules."""
    where: str | None = None
    """Instead of a policy: one SQL expression that is true for what to keep."""
    dry_run: Annotated[bool, EXECUTION_ONLY] = False
    """Write no selection, but a page on what the rules would do."""
    page: Annotated[Place | None, EXECUTION_ONLY] = None
    """Where a dry run's page goes; none: ROOT/dry-run.html."""
    memory_limit: Annotated[str, EXECUTION_ONLY] = "4GB"
    """What DuckDB may hold in memory; beyond it, it spills to temporary files."""
    check_digests: Annotated[bool, EXECUTION_ONLY] = True
    """Read every parquet against its digest first."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace a selection of this name that another policy made."""


def run(config: Config) -> Summary:
    """Raises ConfigError naming the rule whose SQL is wrong, and the columns that there are."""
    with Stopwatch() as watch, tempfile.TemporaryDirectory(prefix="carrara-") as spool:
        whole = _policy(config)
        manifest = read_manifest(config.root)
        signals = read_signals(config.root, manifest, whole.signals, whole.optional_signals)
        policy = whole.applied(signals)
        record = Record(
            manifest.digest, policy, {name: one.config_digest for name, one in signals.items()}
        )
        if config.check_digests:
            check_digests(config.root, manifest, signals)
        connection = open_samples(config.root, manifest, list(signals), config.memory_limit, spool)
        _check_sql(connection, policy)
        if config.dry_run:
            done = _try(config, manifest, policy, connection)
        else:
            _check_vacant(config, record)
            counts = Counter[str]()
            batches = _select(connection, policy, manifest.num_samples)
            done = _Done(_write(config, record, batches, counts), counts)
    num_kept = done.counts[KEPT]
    return Summary(
        stage="select",
        num_in=manifest.num_samples,
        num_out=num_kept,
        counts={name: done.counts[name] for name in (KEPT, *(one.name for one in policy.rules))},
        seconds=watch.seconds,
        outputs=done.outputs,
        details={
            "keep rate": round(num_kept / max(manifest.num_samples, 1), 4),
            "policy digest": policy.digest,
            "rules left out": [rule.name for rule in whole.rules if rule not in policy.rules],
            "dry run": config.dry_run,
            **done.details,
        },
        table=done.table,
    )


@dataclass(frozen=True)
class _Done:
    """What `run` tells of a selection, written or tried."""

    outputs: dict[str, str]
    counts: Counter[str]
    details: dict[str, object] = field(default_factory=dict)
    table: list[dict[str, object]] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """What a selection follows from."""

    corpus_digest: str
    policy: Policy
    signals: dict[str, str]
    """Digest of each signal's parameters, by name."""

    def identity(self) -> dict[str, Any]:
        return {
            "corpus_digest": self.corpus_digest,
            "policy_digest": self.policy.digest,
            "signals": self.signals,
        }


def read_signals(
    root: str,
    manifest: Manifest,
    names: tuple[str, ...] | None,
    optional: tuple[str, ...] = (),
) -> dict[str, ColumnsManifest]:
    """The manifests of the signals that a policy needs; None: of all that are whole.

    Of the optional ones those that are there.
    """
    found = {}
    wanted = list_signals(root) if names is None else names
    for name in dict.fromkeys([*wanted, *optional]):
        url = storage.join(root, "columns", name, "manifest.json")
        if storage.exists(url):
            found[name] = read_record(url, ColumnsManifest)
            if found[name].corpus_digest != manifest.digest:
                raise InputError(
                    f"{root}: signal {name!r} was scored on another corpus (digest "
                    f"{found[name].corpus_digest}, now {manifest.digest}); run "
                    f"`carrara score {root} --signals {name} --overwrite`"
                )
    missing = [name for name in names or () if name not in found]
    if missing:
        raise InputError(
            f"{root}: the policy needs signals that have not been scored: {', '.join(missing)}; "
            f"run `carrara score {root} --signals {' '.join(missing)}`"
        )
    return found


def _policy(config: Config) -> Policy:
    if config.policy is not None and config.where is None:
        return load_policy(config.policy)
    if config.where is not None and config.policy is None:
        return policy_of(config.where)
    if config.policy is not None:
        raise ConfigError("select: --policy and --where are both given; give one of them")
    raise ConfigError(
        "select: what to keep is not said; give --policy with a TOML file or the name of a shipped "
        f"policy ({', '.join(shipped_policies())}), or --where with an SQL expression"
    )


def _try(
    config: Config, manifest: Manifest, policy: Policy, connection: "DuckDBPyConnection"
) -> _Done:
    """The page of a dry run, and its numbers for the terminal."""
    from pipeline.pages.page import DRY_RUN
    from pipeline.selecting.dry_run import dry_run
    from pipeline.selecting.dry_run_page import draw_page, numbers

    found = dry_run(connection, policy, manifest.num_samples)
    page = config.page or storage.join(config.root, DRY_RUN)
    storage.publish_text(page, draw_page(connection, config.root, manifest, found, config.name))
    rules = numbers(found)["rules"]
    table = [
        {
            "": number,
            "rule": rule["name"],
            "as reason": rule["first"],
            "alone": rule["alone"],
            "only it": rule["only"],
            **{f"% with {i}": round(share, 1) for i, share in enumerate(rule["both_shares"], 1)},
        }
        for number, rule in enumerate(rules, 1)
    ]
    counts = Counter({KEPT: found.num_kept} | {rule["name"]: rule["first"] for rule in rules})
    return _Done({"page": page}, counts, {"rules": rules}, table)


def _check_vacant(config: Config, record: Record) -> None:
    url = selection_url(config.root, config.name, ".toml")
    if config.overwrite or not storage.exists(url):
        return
    there = read_mapping(url)
    differing = [name for name, value in record.identity().items() if there.get(name) != value]
    if differing:
        raise ConflictError(
            f"{url}: holds a selection with another {differing[0].replace('_', ' ')} "
            f"({there.get(differing[0])}, now {record.identity()[differing[0]]}); choose another "
            "--name, or pass --overwrite to replace it"
        )


def _check_sql(connection: "DuckDBPyConnection", policy: Policy) -> None:
    """Each expression on its own, so that an error names its rule."""
    for rule in policy.rules:
        kind = _type_of(connection, f"rule {rule.name!r}", rule.keep)
        if kind != "BOOLEAN":
            raise ConfigError(
                f"rule {rule.name!r}: {rule.keep!r} is {kind}; expected an expression that is "
                "true or false"
            )
    kind = _type_of(connection, "weight", policy.weight)
    if not re.match(NUMBER, kind):
        raise ConfigError(f"weight {policy.weight!r} is {kind}; expected a number")


def _type_of(connection: "DuckDBPyConnection", place: str, expression: str) -> str:
    import duckdb

    columns = ", ".join(connection.table("samples").columns)
    try:
        # The line break ends a comment, should the expression end in one.
        return str(connection.sql(f"SELECT ({expression}\n) FROM samples LIMIT 0").types[0])
    except duckdb.Error as error:
        raise ConfigError(
            f"{place}: {expression!r}: {first_line(error)}; there are the columns {columns}"
        ) from None


def _select(
    connection: "DuckDBPyConnection", policy: Policy, num_samples: int
) -> Iterator[pa.RecordBatch]:
    """SELECTION_SCHEMA, in key order, in batches of the same size whatever the threads did."""
    import duckdb

    cases = " ".join(
        f"WHEN ({rule.keep}\n) IS NOT TRUE THEN {i}" for i, rule in enumerate(policy.rules)
    )
    query = f"""
        SELECT uid, CASE {cases} ELSE -1 END AS rule, ({policy.weight}\n)::FLOAT AS weight
        FROM samples ORDER BY key
    """
    num_rows = 0
    with track("select", num_samples, "samples") as bar:
        try:
            for batch in connection.sql(query).to_arrow_reader(ROWS_A_BATCH):
                num_rows += batch.num_rows
                bar.advance(batch.num_rows)
                yield _with_reasons(batch, policy)
        except duckdb.Error as error:
            raise failure(error) from None
    if num_rows != num_samples:
        raise DamagedError(
            f"the shards' parquets and columns join to {num_rows} rows, the manifest counts "
            f"{num_samples} samples; `carrara verify` tells which file is damaged"
        )


def _with_reasons(batch: pa.RecordBatch, policy: Policy) -> pa.RecordBatch:
    rule = batch["rule"]
    keep = pc.equal(rule, -1)
    names = pa.array([one.name for one in policy.rules])
    reason = pc.take(names, pc.if_else(keep, None, rule))
    weight = pc.if_else(keep, batch["weight"], pa.scalar(0.0, pa.float32()))
    if pc.any(pc.less(weight, 0.0)).as_py():
        raise ConfigError(f"weight {policy.weight!r}: is negative for some; expected 0 or more")
    if weight.null_count:
        raise ConfigError(
            f"weight {policy.weight!r}: is NULL for {weight.null_count} kept samples; add a rule "
            "that drops them, or a coalesce(..., 1.0)"
        )
    return pa.RecordBatch.from_arrays([batch["uid"], keep, weight, reason], schema=SELECTION_SCHEMA)


def _count(batch: pa.RecordBatch, counts: Counter[str]) -> None:
    for entry in pc.value_counts(pc.fill_null(batch["reason"], KEPT)).to_pylist():
        counts[entry["values"]] += entry["counts"]


def _write(
    config: Config, record: Record, batches: Iterator[pa.RecordBatch], counts: Counter[str]
) -> dict[str, str]:
    import tomli_w

    parquet = selection_url(config.root, config.name)
    toml = selection_url(config.root, config.name, ".toml")
    # The record goes first and comes back last: a selection without one is not whole.
    storage.remove(toml)
    storage.sweep(storage.join(config.root, "selections"), f"{config.name}.")
    with (
        storage.publish(parquet) as path,
        pq.ParquetWriter(path, SELECTION_SCHEMA, compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
            _count(batch, counts)
    text = tomli_w.dumps(
        record.identity()
        | {"sha256": storage.sha256(parquet), "counts": dict(counts)}
        | {"policy": record.policy.model_dump(mode="json", exclude_none=True)}
    )
    storage.publish_text(toml, text)
    return {"selection": parquet, "policy": toml}
