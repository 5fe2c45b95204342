"""Rows of a list, however they were stored -> tables of url, caption, fault and what else is kept.

A row's `fault` says why it is no pair, and is null where it is one.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MALFORMED_ROW = "malformed row"
NULL_URL = "null url"
URL_NOT_TEXT = "url is not a string"
NULL_CAPTION = "null caption"
CAPTION_NOT_TEXT = "caption is not a string"


NO_CAPTIONS = ""
"""The caption column of a list that has none: every caption is empty."""


@dataclass(frozen=True)
class PairColumns:
    """What the list calls its columns."""

    url: str
    caption: str
    additional: tuple[str, ...] = ()
    expected_hash: str | None = None
    """Of the bytes, as hex; read as `expected_hash`."""
    expected_picture_hash: str | None = None
    """PDQ's, as hex; read as `expected_picture_hash`."""

    @property
    def options(self) -> dict[str, str]:
        """Every column of the list that is read, and the option that names it."""
        named: dict[str | None, str] = {
            self.url: "--url-column",
            self.caption: "--caption-column",
            **dict.fromkeys(self.additional, "--save-additional-columns"),
            self.expected_hash: "--verify-hash",
            self.expected_picture_hash: "--verify-picture-hash",
        }
        return {name: option for name, option in named.items() if name}

    @property
    def all(self) -> list[str]:
        return list(self.options)

    @property
    def expected(self) -> dict[str, str]:
        """Columns of hashes by the names that they are read under."""
        named = {
            "expected_hash": self.expected_hash,
            "expected_picture_hash": self.expected_picture_hash,
        }
        return {name: column for name, column in named.items() if column}

    @property
    def texts(self) -> list[str]:
        """What is text, however much it looks like numbers."""
        return [name for name in (self.url, self.caption, *self.expected.values()) if name]


def pair_table(table: pa.Table, columns: PairColumns) -> pa.Table:
    table = table.combine_chunks()
    url, url_not_text = _texts(table[columns.url])
    if columns.caption == NO_CAPTIONS:
        table = table.append_column(NO_CAPTIONS, pa.repeat(pa.scalar(""), table.num_rows))
    caption, caption_not_text = _texts(table[columns.caption])
    fault = _faults(url, url_not_text, caption, caption_not_text)
    expected = {name: _texts(table[column])[0] for name, column in columns.expected.items()}
    additional = {name: _readable(table[name]) for name in columns.additional}
    return pa.table({"url": url, "caption": caption, "fault": fault, **expected, **additional})


def object_table(objects: list[dict[str, Any] | None], columns: PairColumns) -> pa.Table:
    rows = [row or {} for row in objects]
    urls = [row.get(columns.url) for row in rows]
    captions = [row.get(columns.caption) if columns.caption else "" for row in rows]
    fault = _faults(*_texts_of_values(urls), *_texts_of_values(captions))
    fault = pc.if_else(pa.array([row is None for row in objects]), MALFORMED_ROW, fault)
    expected = {
        name: _texts_of_values([row.get(column) for row in rows])[0]
        for name, column in columns.expected.items()
    }
    additional = {name: _values([r.get(name) for r in rows]) for name in columns.additional}
    return pa.table(
        {
            "url": _texts_of_values(urls)[0],
            "caption": _texts_of_values(captions)[0],
            "fault": fault,
            **expected,
            **additional,
        }
    )


def malformed_rows(num: int, schema: pa.Schema, columns: PairColumns) -> pa.Table:
    text = pa.nulls(num, pa.string())
    expected = dict.fromkeys(columns.expected, text)
    nulls = {name: pa.nulls(num, schema.field(name).type) for name in columns.additional}
    fault = pa.repeat(pa.scalar(MALFORMED_ROW), num)
    return pa.table({"url": text, "caption": text, "fault": fault, **expected, **nulls})


def _faults(
    url: pa.Array, url_not_text: pa.Array, caption: pa.Array, caption_not_text: pa.Array
) -> pa.Array:
    """Why each row is no pair, null where it is one. An empty caption is a caption."""
    blank_url = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(url), ""), True)
    fault = pa.nulls(len(url), pa.string())
    for is_fault, name in (
        (pc.is_null(caption), NULL_CAPTION),
        (caption_not_text, CAPTION_NOT_TEXT),
        (blank_url, NULL_URL),
        (url_not_text, URL_NOT_TEXT),
    ):
        fault = pc.if_else(is_fault, name, fault)
    return fault


def _texts(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The column as strings, null where it has none, and where it has something else."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    num = len(column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = pa.concat_arrays(column.cast(pa.string()).chunks or [pa.array([], pa.string())])
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid:
            return _texts_of_values([_decoded(v) for v in texts.cast(pa.binary()).to_pylist()])
        return texts, pa.repeat(pa.scalar(False), num)
    not_null = column.is_valid()
    return pa.nulls(num, pa.string()), pa.array(not_null.to_pylist(), pa.bool_())


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """With U+FFFD in texts for what is no UTF-8: nothing hangs on these columns."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        texts = column.cast(pa.large_binary()).to_pylist()
        decoded = [text if text is None else text.decode(errors="replace") for text in texts]
        return pa.chunked_array([pa.array(decoded, column.type)])
    return column


def _decoded(value: bytes | None) -> object:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return value


def _texts_of_values(values: list[object]) -> tuple[pa.Array, pa.Array]:
    texts = [value if isinstance(value, str) and _is_utf8(value) else None for value in values]
    not_text = [v is not None and text is None for v, text in zip(values, texts, strict=True)]
    return pa.array(texts, pa.string()), pa.array(not_text, pa.bool_())


def _is_utf8(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no encoding of text can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _values(values: list[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, OverflowError):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
