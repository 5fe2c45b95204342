"""Which of many questions can't be answered, and why: the others are answered all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import CarraraError


class Faults(dict[int, CarraraError]):
    """By the questions' places."""

    def __init__(self, *, is_strict: bool) -> None:
        """Strict: nothing is noted, the first fault ends it for all."""
        super().__init__()
        self._is_strict = is_strict

    @contextmanager
    def noted(self, *places: int) -> Iterator[None]:
        """What is raised within is the fault of these questions, and goes no further."""
        try:
            yield
        except CarraraError as error:
            if self._is_strict:
                raise
            self.update(dict.fromkeys(places, error))
