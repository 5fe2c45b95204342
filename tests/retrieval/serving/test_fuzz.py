"""Schemathesis against the service's own OpenAPI: valid, nearly valid and nonsensical requests."""

import contextlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

StartService = Callable[..., AbstractContextManager[httpx.Client]]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
"""All that hold whatever is sent. That every valid request is accepted does not: that a term is
words or a picture but not both is no matter of OpenAPI."""

KEY = "0123456789abcdef"


INDEX = "emoji"


def check_all(
    base_url: httpx.URL,
    mode: GenerationMode,
    only: str = "",
    headers: dict[str, str] | None = None,
    *,
    is_named: bool = False,
    max_examples: int = 12,
) -> int:
    """Of the operations at paths that begin so, how many were asked; `is_named`: of the index that
    there is, and of none that there isn't."""
    described = httpx.get(f"{base_url}/openapi.json", trust_env=False).json()
    if is_named:
        _name_the_index(described)
    api = schemathesis.openapi.from_dict(described)
    found: list[Any] = list(api.get_all_operations())
    operations = [one.ok() for one in found]
    chosen = [one for one in operations if one.path.startswith(only)]
    for operation in chosen:

        @settings(
            max_examples=max_examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(base_url=str(base_url), checks=CHECKS, headers=headers)

        with contextlib.suppress(Unsatisfiable):  # what takes no input has nothing wrong to send
            check()
    return len(chosen)


def _name_the_index(described: dict[str, Any]) -> None:
    """Wherever one can be asked for: else nearly every question is 404 before its code runs."""
    named = {"type": "string", "enum": [INDEX]}
    for schema in described["components"]["schemas"].values():
        fields = schema.get("properties", {})
        fields |= {name: named for name in ("index", "indice_name") if name in fields}
    for path in described["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "index":
                    parameter["schema"] = named


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_sent_the_answer_is_as_promised(
    client: httpx.Client, mode: GenerationMode
) -> None:
    assert check_all(client.base_url, mode) >= 10


def test_the_index_that_there_is_answers_as_promised(client: httpx.Client) -> None:
    mode = GenerationMode.POSITIVE
    assert check_all(client.base_url, mode, is_named=True, max_examples=100) >= 10


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {}], ids=["with a key", "without"])
def test_the_same_where_keys_are_asked_for_and_selections_are_saved(
    served_root: str,
    start_service: StartService,
    tmp_path: Path,
    mode: GenerationMode,
    headers: dict[str, str],
) -> None:
    root = shutil.copytree(served_root, tmp_path / "emoji")  # selections are written there
    keys = tmp_path / "keys"
    keys.write_text(f"ada {KEY}\n")
    limits = {"max_wait_s": 300, "fetch": {"retries": 0, "timeout": 5}}
    with start_service(str(root), keys=str(keys), allow_save=True, **limits) as client:
        assert check_all(client.base_url, mode, "/v1/", headers) >= 5
