"""Terms -> unit vectors [n, d] in an index's space, words and pictures each in one batch.

Models are loaded when a term first needs them; pictures of the web come through the pipeline's
safe fetcher. From any number of threads.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from infra.errors import ConflictError, InputError
from pipeline.fetching.fetch_settings import Failure, FetchSettings
from retrieval.asking.clock import Seconds, timed
from retrieval.asking.faults import Faults
from retrieval.asking.question import Term

if TYPE_CHECKING:
    from retrieval.encoding.encoder import Encoder
    from retrieval.live.snapshot import Snapshot

NUM_CONNECTIONS = 8
"""To fetch the pictures of one batch."""
MAX_QUICK_TEXTS = 100
"""From about so many on the encoder, once loaded, has made up for its loading."""
SHORTEST = 1e-6
"""A vector shorter than this points nowhere: terms that took each other away, or zeros."""


class TextTower(Protocol):
    """Whatever encodes words into the index's space."""

    @property
    def weights_digest(self) -> str: ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray: ...


class TermEncoder:
    """For the indices of one encoder."""

    def __init__(
        self,
        name: str,
        *,
        encoder: "Encoder | None",
        fetch: FetchSettings,
        device: str,
        quick_start: bool,
    ) -> None:
        self._name = name
        self._encoder = encoder
        self._quick_tower: TextTower | None = None
        self._is_quick_start = quick_start
        self._multilingual: dict[str, TextTower] = {}
        self._fetch = fetch
        self._device = device
        self._loading = threading.Lock()

    def vectors(
        self,
        terms: Sequence[Term],
        places: Sequence[int],
        state: "Snapshot",
        multilingual: bool,
        seconds: Seconds,
        faults: Faults,
    ) -> np.ndarray:
        """[len(terms), d] float32, unit rows; those of a question with a fault may be zero.

        `places`: of each term's question. Raises InputError where a picture can't be fetched.
        """
        found = np.zeros((len(terms), state.manifest.dim), np.float32)
        for row, (term, place) in enumerate(zip(terms, places, strict=True)):
            with faults.noted(place):
                if term.embedding is not None:
                    found[row] = _given(term.embedding, state)
                elif term.uid is not None:
                    found[row] = _stored(term.uid, state)
        terms = self.with_pictures(terms, seconds)
        left = {row: term for row, term in enumerate(terms) if places[row] not in faults}
        texts = {row: term.text for row, term in left.items() if term.text is not None}
        pictures = {row: term.image for row, term in left.items() if term.image is not None}
        if texts:
            with faults.noted(*(places[row] for row in texts)):
                may_be_quick = len(texts) <= MAX_QUICK_TEXTS and not pictures
                tower = self._tower(state, multilingual, may_be_quick)
                with timed(seconds, "encode_text"):
                    _encode_texts(tower, texts, places, found, faults)
        if pictures:
            with faults.noted(*(places[row] for row in pictures)):
                encoder = self._whole_encoder(state)
                with timed(seconds, "decode"):
                    pixels = _decoded(encoder, pictures, places, faults)
                if pixels:
                    with timed(seconds, "encode_image"):
                        found[list(pixels)] = encoder.encode_pixels(np.stack([*pixels.values()]))
        return found

    def with_pictures(self, terms: Sequence[Term], seconds: Seconds) -> list[Term]:
        """The same terms, pictures of the web fetched; raises InputError for one that can't be."""
        urls = {place: term.image_url for place, term in enumerate(terms) if term.image_url}
        found = {}
        if urls:
            with timed(seconds, "fetch"):
                found = self._fetched(urls)
        return [
            Term(image=found[place], weight=term.weight) if place in found else term
            for place, term in enumerate(terms)
        ]

    def _fetched(self, urls: dict[int, str]) -> dict[int, bytes]:
        from pipeline.fetching.fetch import Fetcher

        # One of its own: a fetcher serves one list at a time, and threads must not wait for others.
        fetcher = Fetcher(self._fetch, min(NUM_CONNECTIONS, len(urls)))
        found = {}
        try:
            for place, answer in fetcher.fetch_all(urls.items()):
                if isinstance(answer, Failure):
                    raise InputError(
                        f"{urls[place]}: can't be fetched ({answer.reason}); expected a picture at "
                        "a public address"
                    )
                found[place] = answer.data
        finally:
            fetcher.close()
        return found

    def _tower(self, state: "Snapshot", multilingual: bool, may_be_quick: bool) -> TextTower:
        return (
            self._multilingual_tower(state)
            if multilingual
            else self._text_tower(state, may_be_quick=may_be_quick)
        )

    def _text_tower(self, state: "Snapshot", *, may_be_quick: bool) -> TextTower:
        """For a few words the one that takes no seconds to load, if that is what matters."""
        if not self._is_quick_start or not may_be_quick or self._encoder is not None:
            return self._whole_encoder(state)
        with self._loading:
            if self._quick_tower is None:
                from retrieval.encoding.quick_text_tower import quick_text_tower

                self._quick_tower = quick_text_tower(self._name)
        if self._quick_tower is None:
            return self._whole_encoder(state)
        check_weights(self._quick_tower.weights_digest, state)
        return self._quick_tower

    def _multilingual_tower(self, state: "Snapshot") -> TextTower:
        """Raises ConfigError where no text tower for other languages shares the index's space."""
        digest = state.manifest.weights_digest
        with self._loading:
            if digest not in self._multilingual:
                from retrieval.encoding.towers import tower_of

                self._multilingual[digest] = tower_of(self._name, digest, self._device)
            return self._multilingual[digest]

    def _whole_encoder(self, state: "Snapshot") -> "Encoder":
        with self._loading:
            if self._encoder is None:
                from retrieval.encoding.encoder import load_encoder

                self._encoder = load_encoder(self._name, self._device)
        check_weights(self._encoder.weights_digest, state)
        return self._encoder


def check_weights(digest: str, state: "Snapshot") -> None:
    """Raises ConflictError unless they are those that the index was made with."""
    name, then = state.manifest.encoder, state.manifest.weights_digest
    if digest != then:
        raise ConflictError(
            f"encoder {name!r}: its weights changed since the index was made (sha256 "
            f"{digest[:16]}, then {then[:16]}); run `carrara embed` and `carrara index` on "
            f"{state.root} again, with --overwrite"
        )


def unit(vector: np.ndarray, reason: str) -> np.ndarray:
    """Of length 1; raises InputError with the reason for one that points nowhere."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not length > SHORTEST:
        raise InputError(reason)
    direction: np.ndarray = (vector / length).astype(np.float32)
    return direction


def _encode_texts(
    tower: TextTower,
    texts: Mapping[int, str],
    places: Sequence[int],
    found: np.ndarray,
    faults: Faults,
) -> None:
    """Into the rows of `found` [n, d] that they are given by."""
    try:
        found[list(texts)] = tower.encode_texts(list(texts.values()))
    except InputError:
        # One of them has no words; each by itself tells which.
        for row, text in texts.items():
            with faults.noted(places[row]):
                found[row] = tower.encode_texts([text])[0]


def _decoded(
    encoder: "Encoder", pictures: Mapping[int, bytes], places: Sequence[int], faults: Faults
) -> dict[int, np.ndarray]:
    """By row, without those that can't be."""
    pixels = {}
    for row, data in pictures.items():
        with faults.noted(places[row]):
            pixels[row] = _pixels(encoder, data)
    return pixels


def _pixels(encoder: "Encoder", data: bytes) -> np.ndarray:
    try:
        return encoder.preprocess(data)
    except InputError as error:
        raise InputError(f"picture: {error}") from None


def _given(embedding: list[float], state: "Snapshot") -> np.ndarray:
    if len(embedding) != state.manifest.dim:
        raise InputError(
            f"embedding of {len(embedding)} numbers; the index by {state.manifest.encoder!r} takes "
            f"{state.manifest.dim}"
        )
    return unit(np.asarray(embedding), "embedding: is zero; expected a direction")


def _stored(uid: str, state: "Snapshot") -> np.ndarray:
    """The sample's picture, also where captions are searched: it stands for what it shows."""
    row = state.row_of(uid)
    if row is None:
        raise InputError(f"uid {uid!r}: no such sample in the index; expected 32 hex digits of one")
    vector: np.ndarray = state.vectors(np.array([row]), "image")[0]
    return unit(vector, f"uid {uid}: its stored embedding is zero")
