"""The thresholds in a rule's SQL: `num_words > 2 AND clip_similarity >= 0.28` has two.

DuckDB parses the rule and writes the parts back as SQL, so what counts as a comparison is what it
takes for one. What stands within a subquery is about other rows and is passed over.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

OPERATORS = {
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
}
MIRRORED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}
INVERSE = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}

NUMBER = r"DECIMAL|DOUBLE|FLOAT|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?\b"
"""DuckDB's names of numbers' types, as the beginning of one."""

Node = dict[str, Any]
"""A part of DuckDB's syntax tree, as JSON."""


@dataclass(frozen=True)
class Threshold:
    """What a score must be for a sample to stay, as `NOT x >= 3` is `x < 3`; all three are SQL."""

    score: str
    operator: str
    limit: str


def find_thresholds(connection: "DuckDBPyConnection", expression: str) -> list[Threshold]:
    """Of an expression over `samples` that is known to be valid."""
    # The line break ends a comment, should the expression end in one.
    text = _call(connection, "json_serialize_sql", f"SELECT ({expression}\n)")
    statement = json.loads(text)
    found = []
    for left, operator, right in _comparisons(statement["statements"][0]["node"]["select_list"]):
        if not _has_column(left):
            left, operator, right = right, MIRRORED[operator], left
        score, limit = (_as_sql(connection, statement, node) for node in (left, right))
        if _has_column(left) and _is_number(connection, f"({score}) - ({limit})"):
            found.append(Threshold(score, operator, limit))
    return found


def _comparisons(tree: Any, is_negated: bool = False) -> Iterator[tuple[Node, str, Node]]:
    if isinstance(tree, list):
        for part in tree:
            yield from _comparisons(part, is_negated)
    elif isinstance(tree, dict) and tree.get("class") != "SUBQUERY":
        kind = tree.get("type")
        here = []
        if kind in OPERATORS:
            here = [(tree["left"], OPERATORS[kind], tree["right"])]
        elif kind == "COMPARE_BETWEEN":
            here = [(tree["input"], ">=", tree["lower"]), (tree["input"], "<=", tree["upper"])]
        for left, operator, right in here:
            yield left, INVERSE[operator] if is_negated else operator, right
        for part in tree.values():
            yield from _comparisons(part, is_negated ^ (kind == "OPERATOR_NOT"))


def _has_column(tree: Any) -> bool:
    if isinstance(tree, list):
        return any(map(_has_column, tree))
    if not isinstance(tree, dict) or tree.get("class") == "SUBQUERY":
        return False
    return tree.get("class") == "COLUMN_REF" or any(map(_has_column, tree.values()))


def _as_sql(connection: "DuckDBPyConnection", statement: Node, node: Node) -> str:
    (template,) = statement["statements"]
    only = template | {"node": template["node"] | {"select_list": [node]}}
    text = json.dumps(statement | {"statements": [only]})
    return _call(connection, "json_deserialize_sql", text).removeprefix("SELECT ")


def _call(connection: "DuckDBPyConnection", function: str, text: str) -> str:
    ((answer,),) = connection.execute(f"SELECT {function}(?::VARCHAR)", [text]).fetchall()
    return str(answer)


def _is_number(connection: "DuckDBPyConnection", expression: str) -> bool:
    import duckdb

    try:
        kind = str(connection.sql(f"SELECT {expression} FROM samples LIMIT 0").types[0])
    except duckdb.Error:  # no difference between texts, or times
        return False
    return re.match(NUMBER, kind) is not None
