"""What to draw: captions from the command line and from a file.

Reads   a .txt with a caption a line, or a .csv, .jsonl or .parquet with a column of them
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from infra import storage
from infra.errors import InputError


def read_captions(url: str, column: str) -> list[str]:
    """Every caption of the file, in its order; raises InputError naming what can't be one."""
    suffix = PurePosixPath(url).suffix.lower()
    if suffix not in READERS:
        raise InputError(
            f"captions file {url}: {suffix or 'no suffix'!r}; expected one of "
            f"{', '.join(sorted(READERS))}"
        )
    try:
        values = READERS[suffix](url, column)
    except FileNotFoundError:
        raise InputError(f"captions file {url}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"captions file {url}: not a {suffix} file in UTF-8 ({error})") from None
    return checked(values, f"captions file {url}")


def checked(captions: Sequence[object], where: str) -> list[str]:
    """The same, each of them words; raises InputError for one that isn't and for none at all."""
    if not captions:
        raise InputError(f"{where}: no captions; expected at least one")
    words = []
    for number, caption in enumerate(captions, 1):
        if not isinstance(caption, str) or not caption.strip():
            raise InputError(
                f"{where}: caption {number} is {caption!r}, a caption is empty; expected words; to "
                "draw without any, --guidance-scale 0 ignores the caption"
            )
        words.append(caption)
    return words


def _lines(url: str, _column: str) -> list[object]:
    return [line for line in storage.read_text(url).splitlines() if line.strip()]


def _csv(url: str, column: str) -> list[object]:
    rows = csv.DictReader(io.StringIO(storage.read_text(url), newline=""))
    _check_column(url, column, rows.fieldnames or ())
    return [row[column] for row in rows]


def _jsonl(url: str, column: str) -> list[object]:
    rows = [json.loads(line) for line in storage.read_text(url).splitlines() if line.strip()]
    for row in rows:
        _check_column(url, column, row if isinstance(row, dict) else ())
    return [row[column] for row in rows]


def _parquet(url: str, column: str) -> list[object]:
    import pyarrow.parquet as pq

    with storage.open_read(url) as file:
        _check_column(url, column, pq.read_schema(file).names)
    values: list[object] = storage.read_table(url, [column])[column].to_pylist()
    return values


READERS: dict[str, Callable[[str, str], list[object]]] = {
    ".txt": _lines,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def _check_column(url: str, column: str, names: Sequence[str] | dict[str, object]) -> None:
    if column not in names:
        raise InputError(
            f"captions file {url}: no column {column!r} (it has: {', '.join(names) or 'none'}); "
            "say which with --caption-column"
        )
