"""Files as parts of questions: a picture or an embedding as a term, a list of questions.

Reads   .jpg .png ...        a picture
        .npy .json           an embedding [d]
        .txt                 a query a line, in the words of algebra
        .jsonl               a question a line: {"query": "cat - dog"} or {"terms": [...]}, with
                             any field of Question
        .npy of many rows    a question a row
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import InputError
from retrieval.asking.question import Term, make_term

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *(".heic", ".jxl"),
)
EMBEDDING_SUFFIXES = (".npy", ".json")
WORDS = "expected a picture or an embedding; words that look like a file go in double quotes"
_PATH_BEGINNINGS = ("./", "../", "/", "~/", "file://", "s3://", "gs://", "memory://")


def looks_like_a_file(text: str) -> bool:
    """By its form alone: words must not change their meaning with what lies in a folder."""
    suffixes = (*PICTURE_SUFFIXES, *EMBEDDING_SUFFIXES)
    return text.startswith(_PATH_BEGINNINGS) or text.lower().endswith(suffixes)


def read_term(url: str, weight: float = 1.0) -> Term:
    """Raises InputError where there is no such file or it holds no picture and no embedding."""
    if not url.lower().endswith(EMBEDDING_SUFFIXES):
        return read_picture(url, weight)
    rows = _rows(url, _read(url, WORDS))
    if len(rows) != 1:
        raise InputError(
            f"{url}: {len(rows)} embeddings; expected one, or give the file as --questions, which "
            "asks for each"
        )
    return make_term(url, embedding=rows[0], weight=weight)


def read_picture(url: str, weight: float = 1.0) -> Term:
    """Raises InputError for what is no picture, as long as its name can be told."""
    from retrieval.encoding.pictures import decode_picture

    data = _read(url, WORDS)
    try:
        decode_picture(data)
    except InputError as error:
        raise InputError(f"{url}: {error}") from None
    return Term(image=data, weight=weight)


def read_entries(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of a list of questions: where each stands, and its fields, or its words as "query"."""
    data = _read(url, "expected .txt, .jsonl or .npy")
    if url.lower().endswith(EMBEDDING_SUFFIXES):
        for number, row in enumerate(_rows(url, data)):
            place = f"{url} row {number}"
            yield place, {"terms": [make_term(place, embedding=row)]}
        return
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: not UTF-8 text ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{url} line {number}"
            is_json = url.lower().endswith((".jsonl", ".ndjson"))
            yield place, _object(place, line) if is_json else {"query": line.strip()}


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: {line[:60]!r} is no object; expected a question's fields")
    return value


def _rows(url: str, data: bytes) -> list[list[float]]:
    """The embeddings [n, d] in a file of one or many."""
    import numpy as np

    try:
        if url.lower().endswith(".npy"):
            found = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            found = np.array(json.loads(data))
        rows = np.atleast_2d(np.asarray(found)).astype(np.float32)
    except (ValueError, EOFError, TypeError) as error:
        raise InputError(
            f"{url}: no embedding ({error}); expected an array of numbers, as numpy saves it or as "
            "a JSON list"
        ) from None
    if rows.ndim != 2 or rows.size == 0:
        raise InputError(f"{url}: an array of shape {np.shape(found)}; expected [d] or [n, d]")
    listed: list[list[float]] = rows.tolist()
    return listed


def _read(url: str, advice: str) -> bytes:
    path = str(Path(url).expanduser()) if url.startswith("~") else url
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise InputError(f"{url}: no such file; {advice}") from None
