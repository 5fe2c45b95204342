"""`carrara demo`: the whole way on the emoji corpus, by the same commands that a user types.

Serves the corpus on 127.0.0.1 with faults planted, then runs each stage through the command line
with the settings of infra/configs/demo.toml. Leaves in FOLDER:

    pairs.parquet       the list          packed/   the curated shards
    corpus/             what was fetched  run/      the model and its pictures
    query.html .png     a search          report.html
"""

import json
import shlex
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import infra
from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, StageConfig
from infra.errors import ConflictError, ShortfallError
from infra.summary import Stopwatch, Summary, table_of

QUERY = "fruit"
"""Picked from 18 queries tried, as one that the small encoder answers well."""

CAPTIONS = ("grinning face", "flag of Japan", "red heart", "cat face", "a cat in the snow")
"""What the trained model is asked for: four captions of the corpus, and one that is not in it."""

FAST_NUM_PICTURES = 700
FAST = {"train": ["--num-steps", "300"], "sample": ["--num-steps", "50"]}
"""What --fast adds to the command lines."""

NUM_SHOWN = 4
"""Swapped captions that the report is asked to show."""


class Config(StageConfig):
    """The demo's own settings; those of its stages are in infra/configs/demo.toml."""

    folder: Annotated[str | None, POSITIONAL, EXECUTION_ONLY] = None
    """Local folder for all that the demo makes: demo, or demo-fast with --fast. The same folder
    again goes on where it stopped."""
    fast: bool = False
    """A part of the corpus and a shorter training: under four minutes on two cores."""


def run(config: Config = Config()) -> Summary:
    from examples.emoji.server import serve
    from pipeline.corpus import read_manifest

    folder = Path(config.folder or ("demo-fast" if config.fast else "demo"))
    folder.mkdir(parents=True, exist_ok=True)
    with Stopwatch() as watch, serve(_port(folder)) as base_url:
        _write_list_once(folder, base_url, config)
        for command in commands(folder, config):
            _run_command(command)
    planted, stages = check_planted(folder), stage_rows(folder)
    _print("What was planted in the list, and what became of it", planted)
    _print("What each stage did", stages)
    return Summary(
        stage="demo",
        num_in=_num_rows(folder / "pairs.parquet"),
        num_out=read_manifest(str(folder / "packed")).num_samples,
        unit="rows",
        seconds=watch.seconds,
        outputs={"report": str(folder / "report.html")},
        details={"planted": planted, "stages": stages},
    )


def commands(folder: Path, config: Config) -> list[list[str]]:
    """The command lines of the main job, in order."""
    file = Path(infra.__file__).parent / "configs" / "demo.toml"
    here = Path.cwd()
    settings = ["--config", str(file.relative_to(here) if file.is_relative_to(here) else file)]
    pairs, corpus, packed, run = (
        str(folder / name) for name in ("pairs.parquet", "corpus", "packed", "run")
    )
    pages = ["--html", str(folder / "query.html"), "--png", str(folder / "query.png")]
    pictures = ["--output", f"{run}/samples/grid.png", "--strip", f"{run}/samples/strip.png"]
    shown = ["--packed", packed, "--run", run, "--query", str(folder / "query.png")]
    shown += ["--title", "Emoji", "--show", *_some_swapped_uids(folder)]
    lines = [
        ["download", pairs, corpus],
        ["embed", corpus],
        ["index", corpus],
        ["score", corpus],
        ["select", corpus],
        ["pack", corpus, packed],
        ["query", corpus, QUERY, *pages],
        ["train", packed, run],
        ["sample", run, *CAPTIONS, *pictures],
        ["verify", corpus],
        ["report", corpus, *shown, "--output", str(folder / "report.html")],
    ]
    fast = FAST if config.fast else {}
    return [[*line, *fast.get(line[0], []), *settings] for line in lines]


def check_planted(folder: Path) -> list[dict[str, object]]:
    """Each kind of fault in the list: how many rows have it, how many were caught, and by what.

    A row is caught when it was not fetched or, if it was, when the selection drops it. Of a
    duplicate the first row is kept, so half of its rows are caught.
    """
    import duckdb

    rows = folder / "corpus" / "shards" / "*.parquet"
    selection = folder / "corpus" / "selections" / "*.parquet"
    faults = f"""
        WITH fate AS (
            SELECT url, caption, coalesce(reason, error_message, status) AS outcome
            FROM '{rows}' LEFT JOIN '{selection}' USING (uid)
            WHERE status <> 'success' OR NOT keep
        )
        SELECT planted, count(DISTINCT (url, caption)) AS rows,
               count(DISTINCT (url, caption)) FILTER (outcome IS NOT NULL) AS caught,
               coalesce(string_agg(DISTINCT outcome, ', ' ORDER BY outcome), '') AS "caught by"
        FROM '{folder / "pairs.parquet"}' LEFT JOIN fate USING (url, caption)
        WHERE planted <> '' GROUP BY planted ORDER BY planted
    """
    found = duckdb.execute(faults)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def stage_rows(folder: Path) -> list[dict[str, object]]:
    """A row for each stage's newest recorded summary: rows in and out, seconds, bytes written."""
    summaries = [
        summary for home in ("corpus", "packed", "run") for summary in _runs(folder / home)
    ]
    newest = {summary["stage"]: summary for summary in summaries}
    order = [line[0] for line in commands(folder, Config())]
    return [
        {
            "stage": stage,
            "in": newest[stage]["num_in"],
            "out": newest[stage]["num_out"],
            "of": newest[stage]["unit"],
            "seconds": round(newest[stage]["seconds"], 1),
            "MB written": round(sum(map(_size_mb, newest[stage]["outputs"].values())), 1),
        }
        for stage in sorted(newest, key=order.index)
    ]


def _some_swapped_uids(folder: Path) -> list[str]:
    """A few pictures whose captions were swapped, for the report to show wherever they ended."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from pipeline.sample import sample_uid

    rows = pq.read_table(folder / "pairs.parquet")
    swapped = rows.filter(pc.field("planted") == "swapped caption").slice(0, NUM_SHOWN).to_pylist()
    return [sample_uid(row["url"], row["caption"]) for row in swapped]


def _runs(home: Path) -> list[dict[str, Any]]:
    names = storage.list_names(str(home / "runs"))
    return [json.loads((home / "runs" / name).read_text()) for name in names]


def _size_mb(output: str) -> float:
    path = Path(output)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _run_command(line: list[str]) -> None:
    import carrara

    # Stdout is for the demo's own summary, which may be wanted as JSON.
    with redirect_stdout(sys.stderr):
        print(f"\n$ carrara {shlex.join(line)}", flush=True)
        code = carrara.run_command(line)
    if code:
        raise ShortfallError(f"demo: `carrara {line[0]}` ended with exit code {code}, see above")


def _port(folder: Path) -> int:
    """The port that the folder's list names, so that a second run finds its first; else 0."""
    pairs = folder / "pairs.parquet"
    if not pairs.exists():
        return 0
    import pyarrow.parquet as pq

    url = pq.read_table(pairs, columns=["url"])["url"][0].as_py()
    port = urlsplit(url).port or 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConflictError(
                f"{pairs}: its pictures were served on port {port}, which another program uses "
                f"now; end that one, or remove {folder} to start anew"
            ) from None
    return port


def _write_list_once(folder: Path, base_url: str, config: Config) -> None:
    from examples.emoji.server import write_list

    path = folder / "pairs.parquet"
    if not path.exists():
        write_list(path, base_url, FAST_NUM_PICTURES if config.fast else None)


def _num_rows(pairs: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(pairs).metadata.num_rows)


def _print(title: str, rows: list[dict[str, object]]) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    console.print(f"\n[bold]{title}[/]")
    console.print(table_of(rows))
