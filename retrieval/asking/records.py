"""Answers as rows of a file: a row a hit, and a row for each copy that is folded under one.

question query rank similarity folded_under uid key shard caption url, and all else that the
corpus knows of the sample (width, sha256, ...)
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from infra import storage
from retrieval.asking.question import Answer

if TYPE_CHECKING:
    from retrieval.search import Hit


COLUMNS = (
    *("question", "query", "rank", "similarity", "folded_under"),
    *("uid", "key", "shard", "caption", "url"),
)


def write_jsonl(url: str, labels: Sequence[str], answers: Sequence[Answer]) -> None:
    with storage.publish(url) as path, path.open("w", encoding="utf-8") as file:
        for row in _rows(labels, answers):
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def write_parquet(url: str, labels: Sequence[str], answers: Sequence[Answer]) -> None:
    import pyarrow as pa

    rows = list(_rows(labels, answers))
    names = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
    columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    storage.publish_table(url, pa.table(columns))


def _rows(labels: Sequence[str], answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    for number, (label, answer) in enumerate(zip(labels, answers, strict=True)):
        for hit in answer.hits:
            for one in (hit, *answer.folded.get(hit.uid, ())):
                folded_under = None if one is hit else hit.uid
                place = {"question": number, "query": label, "rank": hit.rank}
                yield place | _row(one, folded_under)


def _row(hit: "Hit", folded_under: str | None) -> dict[str, Any]:
    row = {
        "similarity": hit.similarity,
        "folded_under": folded_under,
        "uid": hit.uid,
        "key": hit.key,
        "shard": hit.shard,
        "caption": hit.caption,
        "url": hit.url,
    }
    # image_path is the key, by clip-retrieval's name.
    rest = {name: value for name, value in hit.metadata.items() if name != "image_path"}
    return row | {name: value for name, value in rest.items() if name not in row}
