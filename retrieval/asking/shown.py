"""Answers for people at a terminal: a table, and a list with small pictures where these can be."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from retrieval.asking.pages import Asked, read_pictures
from retrieval.asking.previews import draw_hits, plain
from retrieval.asking.terminal import detect_previews

if TYPE_CHECKING:
    from retrieval.search import Retriever


def table_rows(asked: Sequence[Asked]) -> list[dict[str, object]]:
    """One for each hit; captions are the web's, so what a terminal would obey is left out."""
    rows = []
    for one in asked:
        for hit in one.answer.hits:
            row: dict[str, object] = {"query": plain(one.label)} if len(asked) > 1 else {}
            row |= {"rank": hit.rank, "similarity": hit.similarity, "caption": plain(hit.caption)}
            row |= {"url": plain(hit.url), "uid": hit.uid}
            rows.append(row)
    return rows


def drawing(retriever: "Retriever", asked: Sequence[Asked]) -> str | None:
    """The hits with their pictures, for this terminal; None: it can't show any."""
    kind = detect_previews()
    if kind is None:
        return None
    console = Console()
    drawn = ""
    for one in asked:
        answer = one.answer
        pictures = read_pictures(retriever, answer.hits)
        drawn += f"{plain(one.label)}\n\n" if len(asked) > 1 else "\n"
        drawn += draw_hits(
            answer.hits,
            [answer.num_folded.get(hit.uid, 0) for hit in answer.hits],
            [pictures[hit.uid] for hit in answer.hits],
            kind,
            console.width,
            true_colour=console.color_system == "truecolor",
        )
    return drawn
