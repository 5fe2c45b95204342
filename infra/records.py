"""Small records of what a stage made, read back from JSON or TOML as what they are said to be."""

import json
import tomllib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from infra import storage
from infra.errors import DamagedError

Model = TypeVar("Model", bound=BaseModel)


def read_record(url: str, model: type[Model], **besides: Any) -> Model:
    """`besides` are fields that the file does not have.

    Raises DamagedError where the file isn't one, FileNotFoundError where it isn't there.
    """
    try:
        return model.model_validate(read_mapping(url) | besides)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(url, f"{place}: {first['msg']}") from None


def read_mapping(url: str) -> dict[str, Any]:
    """JSON, or TOML where the name says so; raises as `read_record` does."""
    try:
        text = storage.read_text(url)
        mapping = tomllib.loads(text) if url.endswith(".toml") else json.loads(text)
    except ValueError as error:  # of JSON, TOML or UTF-8
        raise _damaged(url, " ".join(str(error).split())) from None
    if not isinstance(mapping, dict):
        raise _damaged(url, f"a {type(mapping).__name__} instead of an object")
    return mapping


def _damaged(url: str, reason: str) -> DamagedError:
    return DamagedError(
        f"{url}: damaged ({reason}), expected what the command that made it wrote; restore it from "
        "a copy, or remove it and run that command again"
    )
