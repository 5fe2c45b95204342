"""Questions in, answers out: encode the terms, compose them, search, fold, hide and rank.

One Asker serves one index, from any number of threads; the encoder is loaded when a question first
needs it.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from infra.errors import ConfigError, ConflictError, InputError
from pipeline.fetching.fetch_settings import Failure, FetchSettings
from retrieval.asking.question import Answer, Question, Term
from retrieval.pictures import decode_picture
from retrieval.search import Retriever

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

_Seconds = defaultdict[str, float]
"""By step."""


class Asker:
    """Answers questions from one index."""

    def __init__(
        self,
        retriever: Retriever,
        *,
        encoder: "Encoder | None" = None,
        fetch: FetchSettings | None = None,
        device: str = "cpu",
    ) -> None:
        self.retriever = retriever
        self._encoder = encoder
        self._fetch = fetch or FetchSettings()
        self._device = device
        self._lock = threading.Lock()

    def answer(self, question: Question) -> Answer:
        (answer,) = self.answer_many([question])
        return answer

    def answer_many(self, questions: Sequence[Question]) -> list[Answer]:
        """One encode batch for all terms of all questions."""
        seconds = _Seconds(float)
        vectors = [self._compose(question, seconds) for question in questions]
        answers = []
        for question, vector in zip(questions, vectors, strict=True):
            with _timed(seconds, "search"):
                need = question.offset + question.k
                (hits,) = self.retriever.search(vector[None], need, question.modality)
            answers.append(Answer(hits[question.offset :], seconds=dict(seconds)))
        return answers

    def embed(self, term: Term) -> np.ndarray:
        """The unit vector [d] of one term."""
        return self._embed(term, _Seconds(float))

    def _compose(self, question: Question, seconds: _Seconds) -> np.ndarray:
        total: np.ndarray = np.sum(
            [term.weight * self._embed(term, seconds) for term in question.terms], axis=0
        )
        return _unit(total, "the terms cancel out; expected weights that leave something")

    def _embed(self, term: Term, seconds: _Seconds) -> np.ndarray:
        if term.embedding is not None:
            vector = np.asarray(term.embedding, np.float32)
            dim = self.retriever.manifest.dim
            if vector.shape != (dim,):
                raise InputError(
                    f"embedding of {len(vector)} numbers: the index by {self.retriever.encoder!r} "
                    f"takes {dim}"
                )
            return _unit(vector, "embedding: is zero; expected a direction")
        if term.text is not None:
            encoder = self.encoder()
            with _timed(seconds, "encode_text"):
                (row,) = encoder.encode_texts([term.text])
            return np.asarray(row)
        if term.uid is not None:
            raise ConfigError(f"uid {term.uid}: not yet")
        data = term.image
        if data is None:
            assert term.image_url is not None
            with _timed(seconds, "fetch"):
                data = self._fetched(term.image_url)
        picture = decode_picture(data)
        encoder = self.encoder()
        with _timed(seconds, "encode_image"):
            (row,) = encoder.encode_images([picture])
        return np.asarray(row)

    def _fetched(self, url: str) -> bytes:
        from pipeline.fetching.fetch import Fetcher

        fetcher = Fetcher(self._fetch, num_connections=1)
        try:
            answer = fetcher.fetch(url)
        finally:
            fetcher.close()
        if isinstance(answer, Failure):
            raise InputError(f"{url}: can't be fetched ({answer.reason})")
        return answer.data

    def encoder(self) -> "Encoder":
        """The encoder that the index was made with; raises ConflictError if its weights changed."""
        with self._lock:
            if self._encoder is None:
                from retrieval.encoder import load_encoder

                encoder = load_encoder(self.retriever.encoder, self._device)
                there = self.retriever.manifest.weights_digest
                if encoder.weights_digest != there:
                    raise ConflictError(
                        f"encoder {encoder.name!r}: its weights changed since the index was made "
                        f"(sha256 {encoder.weights_digest[:16]}, then {there[:16]}); run `carrara "
                        "embed` and `carrara index` again, with --overwrite"
                    )
                self._encoder = encoder
            return self._encoder


@contextmanager
def _timed(seconds: _Seconds, step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] += time.perf_counter() - start


def _unit(vector: np.ndarray, reason: str) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if not length > 1e-6:
        raise InputError(reason)
    unit: np.ndarray = (vector / length).astype(np.float32)
    return unit
