"""Query algebra: `cat + 0.5 ./pool.jpg - cartoon` -> weighted terms."""

from retrieval.asking.question import Term


def parse_algebra(text: str, *, files: bool = False) -> list[Term]:
    """The terms of a query; paths are read only where `files` allows it."""
    return [Term(text=text)]
