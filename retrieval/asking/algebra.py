"""Query algebra: a line of text <-> weighted terms.

    cat                                    words
    cat + ./pool.jpg - cartoon             added and taken away; the spaces count: t-shirt, C+
    cat - 0.5*"black + white"              weights; what is in quotes is words, whatever it holds
    https://example.org/cat.jpg + uid:0f3c...   a picture of the web, a sample of the corpus

A weight is a number and a star without spaces: `2 cats` and `5* hotel` are words. Where files may
be read (the command line), a picture's or an embedding's path is a term.
"""

import re
from collections.abc import Sequence

from infra.errors import ConfigError
from retrieval.asking.files import looks_like_a_file, read_term
from retrieval.asking.question import Term, make_term

_SEPARATOR = re.compile(r"(?:^|(?<=\s))[+-](?=\s|$)")
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\*(?=\S)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s+[+-](?:\s|$)|\s*$)', re.DOTALL)
_URL = re.compile(r"https?://\S+$")
_UID = "uid:"


def parse_algebra(text: str, *, files: bool = False) -> list[Term]:
    """The terms of a query; paths are read only where `files` allows it.

    Raises ConfigError for what is no query, InputError for a file that can't be used.
    """
    rest = text.strip()
    if not rest:
        raise ConfigError(f"query {text!r}: is empty; expected what to look for")
    terms = []
    sign, rest = _sign(rest)
    while True:
        weight, rest = _weight(rest)
        if quoted := _QUOTED.match(rest):
            words = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)
            term = make_term(f"query {text!r}", text=words, weight=sign * weight)
            rest = rest[quoted.end() :]
        else:
            separator = _SEPARATOR.search(rest)
            end = separator.start() if separator else len(rest)
            term = _operand(text, rest[:end].strip(), sign * weight, files)
            rest = rest[end:]
        terms.append(term)
        rest = rest.strip()
        if not rest:
            return terms
        sign, rest = _sign(rest)


def format_algebra(terms: Sequence[Term]) -> str:
    """A line that `parse_algebra` reads back; bytes of pictures and embeddings are but named."""
    line = ""
    for term in terms:
        sign = "- " if term.weight < 0 else "+ "
        weight = abs(term.weight)
        factor = "" if weight == 1 else f"{weight!r}*"
        line += f" {sign}{factor}{_operand_text(term)}"
    return line.strip().removeprefix("+ ")


def _sign(text: str) -> tuple[int, str]:
    """+1 or -1, and what comes after it."""
    separator = _SEPARATOR.match(text)
    if not separator:
        return 1, text
    return -1 if separator[0] == "-" else 1, text[separator.end() :].lstrip()


def _weight(text: str) -> tuple[float, str]:
    match = _WEIGHT.match(text)
    return (float(match[1]), text[match.end() :]) if match else (1.0, text)


def _operand(query: str, operand: str, weight: float, files: bool) -> Term:
    place = f"query {query!r}"
    if not operand:
        raise ConfigError(
            f"{place}: a + or - has nothing on one side; expected words, or quotes around "
            "a sign that is meant as it is"
        )
    if _URL.match(operand):
        return make_term(place, image_url=operand, weight=weight)
    if operand.startswith(_UID):
        return make_term(place, uid=operand.removeprefix(_UID), weight=weight)
    if files and looks_like_a_file(operand):
        return read_term(operand, weight)
    return make_term(place, text=operand, weight=weight)


def _operand_text(term: Term) -> str:
    if term.image_url is not None:
        return term.image_url
    if term.uid is not None:
        return f"{_UID}{term.uid}"
    if term.text is None:
        return "(picture)" if term.image is not None else "(embedding)"
    return term.text if _is_plain(term.text) else _quote(term.text)


def _quote(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _is_plain(text: str) -> bool:
    """Whether it is read as these words without quotes."""
    return (
        text == text.strip()
        and _SEPARATOR.search(text) is None
        and _WEIGHT.match(text) is None
        and not text.startswith(('"', _UID))
        and _URL.match(text) is None
        and not looks_like_a_file(text)
    )
