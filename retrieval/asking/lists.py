"""Questions by their fields: from settings, and many at once from a file."""

import json
from typing import Any

from pydantic import ValidationError

from infra.errors import InputError
from retrieval.asking.algebra import format_algebra, parse_algebra
from retrieval.asking.files import read_entries
from retrieval.asking.question import Question, Term, reason_of


def read_questions(url: str, settings: dict[str, Any]) -> tuple[list[str], list[Question]]:
    """Of a file, each with its words for people; `settings` are those that a line does not give."""
    labels, questions = [], []
    for place, fields in read_entries(url):
        question = question_of(place, settings | fields)
        questions.append(question)
        labels.append(str(fields.get("query") or format_algebra(question.terms)))
    if not questions:
        raise InputError(f"--questions {url}: no question in it; expected one a line")
    return labels, questions


def question_of(place: str, fields: dict[str, Any]) -> Question:
    """Of its fields; "query" is words of algebra in place of "terms".

    Raises InputError, which names the place, for what is no question.
    """
    rest = dict(fields)
    if ("query" in rest) == ("terms" in rest):
        raise InputError(f"{place}: expected either 'query', in words, or 'terms'")
    if "query" in rest:
        rest["terms"] = parse_algebra(str(rest.pop("query")), files=True)
    try:
        if isinstance(rest["terms"], list):
            rest["terms"] = [_term(one) for one in rest["terms"]]
        return Question.model_validate(rest)
    except ValidationError as error:
        raise InputError(f"{place}: {reason_of(error)}") from None


def _term(value: Any) -> Term:
    """As JSON has it, a picture in base64."""
    return value if isinstance(value, Term) else Term.model_validate_json(json.dumps(value))
