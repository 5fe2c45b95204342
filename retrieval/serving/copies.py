"""Is the picture of a question a copy of one in the corpus? Told where it is asked for.

Reads   ROOT/shards/: the pictures that it may be a copy of
"""

import threading

from retrieval.asking.asker import Asker
from retrieval.asking.question import Question
from retrieval.copies import CopyDetector, CopyVerdict
from retrieval.encoding.pictures import decode_picture


class Copies:
    """Of one index; calibrated at the first question to each of its states."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._lock = threading.Lock()
        self._detector: CopyDetector | None = None
        self._state: object = None

    def verdict(self, question: Question) -> CopyVerdict | None:
        """None for what is no single picture to be near to."""
        first, *others = question.terms
        if first.image is None or others or first.weight <= 0:
            return None
        picture = decode_picture(first.image)
        return self._current().verdict(picture, self._asker.embed(first))

    def _current(self) -> CopyDetector:
        retriever = self._asker.retriever
        with self._lock:
            if self._detector is None or self._state is not retriever.state:
                self._state = retriever.state
                self._detector = CopyDetector(retriever)
            return self._detector
