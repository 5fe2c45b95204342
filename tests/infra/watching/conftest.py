from collections.abc import Iterator

import pytest

from infra.watching.events import log_as_json


@pytest.fixture
def _text_again() -> Iterator[None]:
    yield
    log_as_json(False)
