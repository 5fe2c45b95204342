"""Schemathesis against the service's own OpenAPI: valid, nearly valid and nonsensical requests."""

import contextlib
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


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_sent_the_answer_is_as_promised(
    client: httpx.Client, mode: GenerationMode
) -> None:
    api = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    found: list[Any] = list(api.get_all_operations())
    operations = [one.ok() for one in found]
    assert len(operations) >= 10
    for operation in operations:

        @settings(
            max_examples=12,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(checks=CHECKS)

        with contextlib.suppress(Unsatisfiable):  # what takes no input has nothing wrong to send
            check()
