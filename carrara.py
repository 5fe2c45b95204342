"""Carrara's command line, and its table of contents: every stage by name, loaded when it is used.

    carrara STAGE ARGUMENTS [--config FILE.toml] [--json]

A stage is a module with a `Config` and a `run(config)`. Its settings come from their defaults, then
from the table with the stage's name in the TOML file, then from the command line. Exit code 0: all
done; 2: the user's mistake, one line; 1: work that fell short, named.
"""

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError

from infra.config import StageConfig, hide_password, read_toml, without_password
from infra.errors import CarraraError, ConfigError, ShortfallError
from infra.summary import Summary, print_summary
from infra.watching.events import log_as_json, tell
from infra.watching.run import Run, State, at_work

__version__ = "0.1.0"

INTERRUPTED = "interrupted; the same command again goes on from here"

CONFIGS = Path(__file__).parent / "infra" / "configs"
"""Settings that ship; `--config demo` means the one of that name."""


@dataclass(frozen=True)
class Stage:
    module: str
    help: str
    recorded: bool = True
    """It is recorded in ROOT/runs/ (or RUN/runs/), where `runs` and `report` find it."""
    given: Mapping[str, object] = field(default_factory=dict)
    """What its `run` takes beside the configuration."""


CHECKS: dict[str, tuple[str, ...]] = {
    "infra": (
        "infra.checks.versions:check",
        "infra.checks.machine:check",
        "infra.checks.network:check",
        "infra.checks.bucket:check",
    ),
    "retrieval": ("retrieval.encoding.check:check",),
    "training": ("training.check:check",),
}
"""What each floor has `doctor` look at, as "module:function"."""


CHAPTERS: dict[str, dict[str, Stage]] = {
    "From URLs to a curated corpus": {
        "extract": Stage("pipeline.extract", "Web archives -> pairs of URL and caption.", False),
        "download": Stage("pipeline.download", "A list of URLs and captions -> WebDataset shards."),
        "score": Stage("pipeline.score", "Shards -> columns of scores, computed once."),
        "dedup": Stage("pipeline.dedup.stage", "Copies and leaks -> columns that policies ask."),
        "select": Stage("pipeline.select", "A policy (SQL over the columns) -> a selection."),
        "pack": Stage("pipeline.pack", "A selection -> new, even, shuffled shards."),
        # It leaves receipts, without addresses; what it shows would have them.
        "forget": Stage(
            "pipeline.forget", "Take samples down: tombstones, new shards, a receipt.", False
        ),
        "why": Stage(
            "pipeline.why", "All that is known of one row, and of what became of it.", False
        ),
        "verify": Stage("pipeline.verify", "Reread everything against its digests.", False),
        "runs": Stage("pipeline.runs", "What ran when, its state, its cost, its digests.", False),
        "report": Stage("pipeline.report", "The corpus and its runs as one offline page.", False),
    },
    "From a corpus to answers": {
        "embed": Stage("retrieval.embed", "Shards -> CLIP embeddings of pictures and captions."),
        "index": Stage("retrieval.index", "Embeddings -> kNN indices with measured recall."),
        "query": Stage("retrieval.query", "Search by words or by picture.", False),
        "serve": Stage("retrieval.serve", "Search over HTTP, by page and by API.", False),
    },
    "From a corpus to a model": {
        "train": Stage("training.train", "Shards -> a text-to-image diffusion model, on Ray."),
        "sample": Stage("training.sample", "A trained model and captions -> pictures."),
        "evaluate": Stage("training.evaluate", "Score pictures, or a model's, against a corpus."),
        "export": Stage("training.export", "A checkpoint -> a folder that diffusers loads."),
        "verify-resume": Stage(
            "training.verify_resume", "Kill short training runs: they must go on exactly.", False
        ),
    },
    "Where it runs": {
        "plan": Stage(
            "training.plan", "Hours, dollars and bytes of every stage, before and after.", False
        ),
        "doctor": Stage(
            "infra.doctor", "Is this machine, bucket, cluster ready?", False, {"checks": CHECKS}
        ),
    },
    "All of it": {
        "demo": Stage("examples.emoji.demo", "The whole way, on a corpus that ships.", False),
    },
}

STAGES = {name: stage for chapter in CHAPTERS.values() for name, stage in chapter.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """The `carrara` script: run one command and exit with its code."""
    sys.exit(run_command(sys.argv[1:] if argv is None else argv))


def run_command(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    return _exit_code(lambda: _dispatch(argv))


def _dispatch(argv: Sequence[str]) -> None:
    app = _application()
    try:
        app.meta(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.ValidationError as error:
        raise ConfigError(_validation_line(error)) from error
    except cyclopts.UnusedCliTokensError as error:
        unused = " ".join(error.unused_tokens or ())
        raise ConfigError(
            f"{unused!r}: more than the command takes; quote what has spaces"
        ) from error
    except cyclopts.CycloptsError as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _exit_code(command: Callable[[], object]) -> int:
    """Of a command; what the user must hear of is told."""
    try:
        command()
    except CarraraError as error:
        tell("error", f"carrara: {error}", exit_code=error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        tell("interrupted", INTERRUPTED)
        return 130
    return 0


def main_img2dataset() -> None:
    """The `carrara-img2dataset` script: `download` by img2dataset's options."""
    sys.exit(run_img2dataset(sys.argv[1:]))


def run_img2dataset(argv: Sequence[str]) -> int:
    """Run one command line of img2dataset's; returns its exit code."""
    from pipeline.downloading.img2dataset_options import config_of

    return _exit_code(lambda: execute("download", config_of(argv)))


def execute(
    name: str,
    config: StageConfig,
    *,
    as_json: bool = False,
    watched: Callable[[Run], AbstractContextManager[None]] = lambda _run: nullcontext(),
) -> Summary:
    """Run a stage, keep its record beside its output and print its summary."""
    import importlib

    stage = STAGES[name]
    run = Run(name, _home(config) if stage.recorded else None, config)
    with watched(run):
        with at_work(run):
            summary: Summary = importlib.import_module(stage.module).run(config, **stage.given)
            run.end(State.DONE, summary=summary)
        print_summary(summary, as_json=as_json)
    if summary.shortfall:
        raise ShortfallError(summary.shortfall)
    return summary


def _home(config: StageConfig) -> str:
    places = config.model_dump(include={"root", "run"})
    home: str = places.get("run") or places["root"]
    return home


def _metrics_at(address: str | None) -> Callable[[Run], AbstractContextManager[None]]:
    """As told, else as the environment says for every command: of several at once one has it."""
    is_needed = address is not None
    if address is None:
        address = os.environ.get("CARRARA_METRICS") or None
    if address is None:
        return lambda _run: nullcontext()
    from infra.watching.metrics import served

    return partial(served, address=address, is_needed=is_needed)


def _application() -> App:
    app = App(
        name="carrara",
        help="From URLs and captions to a curated, searchable corpus and a text-to-image model.",
        version=__version__,
        default_parameter=Parameter(negative_iterable=()),
        help_epilogue="`carrara STAGE --help` tells a stage's settings.",
    )
    for chapter, stages in CHAPTERS.items():
        group = cyclopts.Group.create_ordered(chapter)
        for place, (name, stage) in enumerate(stages.items()):
            run = f"{stage.module}:run"
            app.command(run, name=name, help=stage.help, group=group, sort_key=place)

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: str | None = None,
        json: Annotated[bool, Parameter(negative=())] = False,
        log: Annotated[Literal["text", "json"], Parameter(env_var="CARRARA_LOG")] = "text",
        metrics: str | None = None,
    ) -> None:
        """Run a command.

        Parameters
        ----------
        config:
            TOML file with a table of settings for each stage, or the name of one that ships.
        json:
            Print one JSON object on stdout instead of a table.
        log:
            What goes to stderr meanwhile: text for people, or a JSON object a line.
        metrics:
            PORT or HOST:PORT at which Prometheus finds the command's metrics while it runs. Where
            CARRARA_METRICS says so instead, a port that is taken is done without.
        """
        log_as_json(log == "json")
        name = next((token for token in tokens if not token.startswith("-")), None)
        if name is not None and name not in STAGES:
            raise ConfigError(f"{name!r} is no command{_nearest(name)}; see `carrara --help`")
        if config is not None:
            tables = _read_config(config)
            app.config = cyclopts.config.Dict(tables, source=config)
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        if name is not None and "config" in bound.signature.parameters:
            bound.apply_defaults()
            watched = _metrics_at(metrics)
            execute(name, bound.arguments["config"], as_json=json, watched=watched)
        else:  # --help and --version
            command(*bound.args, **bound.kwargs)

    return app


def _read_config(url: str) -> dict[str, dict[str, object]]:
    try:
        without_password(url)
    except ValueError as error:
        raise ConfigError(f"--config {hide_password(url)}: {error}") from None
    shipped = {path.stem: path for path in CONFIGS.glob("*.toml")}
    try:
        tables = read_toml(str(shipped.get(url, url)), f"--config {url}")
    except FileNotFoundError:
        raise ConfigError(
            f"--config {url}: no such file; expected a TOML file, or one of "
            f"{', '.join(sorted(shipped))}"
        ) from None
    for name in tables:
        if name not in STAGES:
            raise ConfigError(
                f"--config {url}: unknown table [{name}]{_nearest(name)}; a table bears the name "
                "of a stage"
            )
    return tables


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, STAGES, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _validation_line(error: cyclopts.ValidationError) -> str:
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    first = cause.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # several settings at odds: the reason names them
        return reason
    name = "--" + ".".join(map(str, first["loc"])).replace("_", "-")
    given = hide_password(repr(first["input"]))
    return f"{name} {given}: {reason[0].lower()}{reason[1:]}"


if __name__ == "__main__":
    main()
