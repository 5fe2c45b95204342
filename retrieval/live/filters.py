"""Rows of an index by what is known of them: one SQL expression -> bool [num_rows].

    width > 512 and language = 'en' and caption ilike '%cat%'

Reads   the index's metadata and ROOT/columns/<signal>/, those columns that the expression names

Anybody may send such an expression, so it is taken apart before it is run: columns, constants,
comparisons, arithmetic, CASE, CAST and the functions below pass, all else is refused. DuckDB then
runs it without access to files, network, extensions or settings, within memory and time.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from threading import Timer
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from infra.errors import ConfigError
from pipeline.selecting.samples_sql import first_line

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "1GB"
TIME_LIMIT_S = 10.0
MAX_LENGTH = 4096
"""Characters of an expression."""

EXPRESSIONS = frozenset(
    {"CONJUNCTION", "COMPARISON", "OPERATOR", "BETWEEN", "COLUMN_REF", "CONSTANT", "CASE", "CAST"}
    | {"FUNCTION", "TYPE"}
)
"""DuckDB's classes of parsed expressions that pass; no subqueries, windows, stars or lambdas."""

FUNCTIONS = frozenset(
    ("+ - * / // % ^ ** & | << >> || ~~ !~~ ~~* !~~* ~~~ @ !").split()
    + ("abs ceil ceiling floor round trunc sqrt ln log log2 log10 exp power pow sign").split()
    + ("greatest least isnan isinf isfinite even bit_count mod if nullif").split()
    + ("lower upper lcase ucase length len strlen trim ltrim rtrim left right substr").split()
    + ("substring contains starts_with ends_with prefix suffix position strpos instr").split()
    + ("like_escape not_like_escape ilike_escape not_ilike_escape regexp_matches").split()
    + ("regexp_full_match reverse ascii unicode concat replace split_part").split()
    + ("list_contains list_value array_contains struct_extract json_extract_string").split()
    + ("year month day hour date_part date_trunc strptime try_strptime make_date").split()
)
"""Those that look at values and give back little: nothing that repeats, generates or sleeps."""


def parse_where(where: str) -> set[str]:
    """The columns that it names; raises ConfigError for what is no expression that may be run."""
    if len(where) > MAX_LENGTH:
        raise ConfigError(f"where: {len(where):,} characters; expected {MAX_LENGTH:,} at most")
    if "\0" in where:
        raise _refused(where, "a zero byte")
    with _sandbox() as connection:
        node = _parsed(connection, where)
        plain = _parsed(connection, "true")
    listed, _ = node.pop("where_clause", {}), plain.pop("where_clause")
    arguments = listed.get("arguments", []) if listed.get("function_name") == "list_value" else []
    if len(arguments) != 1 or _shape(node) != _shape(plain):
        raise _refused(where, "none or more than one expression")
    columns = set()
    for part in _parts(arguments):
        kind = part["class"]
        if kind not in EXPRESSIONS:
            raise _refused(where, kind.lower().replace("_", " "))
        if kind == "FUNCTION" and not _is_simple(part):
            raise _refused(where, f"the function {part['function_name']}, or how it is called,")
        if kind == "COLUMN_REF":
            columns.add(".".join(part["column_names"]))
    return columns


def check_columns(where: str, named: set[str], have: Sequence[str]) -> None:
    """Raises ConfigError for a column that there is not, with the one that may have been meant."""
    by_folded = {name.lower() for name in have}
    for name in sorted(named):
        if name.lower() not in by_folded:
            near = difflib.get_close_matches(name.lower(), have, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"where {where!r}: there is no column {name!r}; {hint}there are: {', '.join(have)}"
            )


def rows_where(where: str, table: pa.Table) -> np.ndarray:
    """bool [len(table)]; NULL is not true. Raises ConfigError for what fails on the values."""
    import duckdb

    numbered = table.append_column("row number", pa.array(np.arange(len(table))))
    found = np.zeros(len(table), bool)
    with _sandbox() as connection:
        connection.register("samples", numbered)
        timer = Timer(TIME_LIMIT_S, connection.interrupt)
        timer.start()
        try:
            # The line's end closes a comment.
            query = f'SELECT "row number" FROM samples WHERE ({where}\n)'
            rows = connection.execute(query).fetchnumpy()["row number"]
        except duckdb.InterruptException:
            raise ConfigError(
                f"where {where!r}: took longer than {TIME_LIMIT_S:g} s; ask for less"
            ) from None
        except duckdb.Error as error:
            raise ConfigError(f"where {where!r}: {first_line(error)}") from None
        finally:
            timer.cancel()
    found[rows] = True
    return found


def _sandbox() -> "DuckDBPyConnection":
    import duckdb

    connection = duckdb.connect(
        config={
            "enable_external_access": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": "",
        }
    )
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _parsed(connection: "DuckDBPyConnection", where: str) -> dict[str, Any]:
    """The one SELECT that it makes, as DuckDB understands it."""
    # In brackets nothing can close that was not opened within.
    query = f"SELECT 1 FROM samples WHERE [{where}\n]"
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    parsed = json.loads(text)
    if parsed["error"]:
        raise ConfigError(
            f"where {where!r}: {parsed['error_message']}; expected an SQL expression such as "
            "width > 512"
        )
    if len(parsed["statements"]) != 1:
        raise _refused(where, "more than one statement")
    node: dict[str, Any] = parsed["statements"][0]["node"]
    return node


def _is_simple(call: dict[str, Any]) -> bool:
    is_for_aggregates = call["distinct"] or call["filter"] or call["order_bys"]["orders"]
    return call["function_name"] in FUNCTIONS and not call["schema"] and not is_for_aggregates


def _shape(node: Any) -> Any:
    """Without where in the text things stand."""
    if isinstance(node, dict):
        return {k: _shape(v) for k, v in node.items() if not k.startswith("query_location")}
    return [_shape(one) for one in node] if isinstance(node, list) else node


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """All expressions in an expression, itself first."""
    if isinstance(node, dict):
        if "class" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _parts(one)


def _refused(where: str, what: str) -> ConfigError:
    return ConfigError(
        f"where {where!r}: {what} is not taken here; expected one expression of columns, "
        "constants, comparisons and simple functions, such as width > 512 and caption ilike '%cat%'"
    )
