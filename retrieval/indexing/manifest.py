"""An index on disk: clip-retrieval's layout, with a record of what was promised and measured.

    ROOT/index/<encoder>/image.index  text.index       the first segment, faiss's format
                         segments/0001/image.index ... what was appended, a folder each time
                         metadata/metadata_{i}.parquet one a part, `i` as in the embeddings
                         groups.npy                    int64 [n]; segments/0001/groups.npy: of all
                                                       rows up to that segment's last
                         index.json                    this record, written last

A *row number* is a position over all segments in order, and within each over its parts. `groups`
gives every row the smallest row number of its near-duplicate group.
"""

from collections.abc import Iterable
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from infra.config import digest_of
from retrieval.embedding.embeddings import Modality, Part

SCHEMA_VERSION = 2

GROUPS = "groups.npy"

RECALL_AT = 10
"""Answers to a query that recall is measured on, and parameters are chosen for."""
LEAST_FACTOR = 2

Parameters = dict[str, int]
"""What a search is given: nprobe, efSearch, k_factor (how many candidates are compared again with
finer vectors, as a multiple of k). None for Flat."""


def widest_of(settings: Iterable[Parameters]) -> Parameters:
    """As wide as each of them in each parameter."""
    widest: Parameters = {}
    for parameters in settings:
        for name, value in parameters.items():
            widest[name] = max(value, widest.get(name, 0))
    return widest


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Promise(Record):
    """What an index was asked to keep, for queries by words and by pictures alike."""

    recall: float
    """Of the 10 truly nearest rows, the mean share that is found."""
    ram_bytes: int
    """That both indices may take in searches, and that building them may take at its peak."""
    p99_ms: float | None = None
    """Of one query, alone on one thread."""


class Measurement(Record):
    """How one kind of index answers one kind of query, at one setting."""

    index: Modality
    queries: Modality
    kind: str
    """faiss's factory string."""
    parameters: Parameters
    num_rows: int
    """That were searched: the whole, or a sample of it."""
    recall_at_10: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    """None where no promise asked for a clock: then the same input gives the same record."""
    bytes_a_row: float | None = None
    build_s: float | None = None


class Segment(Record):
    """Rows that were indexed together. Its files never change."""

    name: str
    """"" for the first, "segments/0001/" for the next: what its files' names begin with."""
    kinds: dict[Modality, str]
    parameters: dict[Modality, dict[Modality, Parameters]]
    """By index, then by the kind of query."""
    measured: dict[Modality, dict[Modality, Measurement]]
    """By index, then by the kind of query: on all the segment's rows."""
    parts: list[Part]
    """In the order of the ids."""
    files: dict[str, str]
    """sha256 of its indices, groups and metadata, by path within the index's folder."""

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)

    def index_name(self, modality: Modality) -> str:
        """Its path within the index's folder."""
        return f"{self.name}{index_name(modality)}"

    def parameters_for(
        self, modality: Modality, k: int = RECALL_AT, asked_by: Modality | None = None
    ) -> Parameters:
        """For k answers to queries of that kind; None, for what is of both or of neither: as wide
        as each, which is what one of the two was measured with (choice.py).

        The factor is a multiple of k: for more answers than it was chosen with it is smaller, and
        gives as many candidates.
        """
        tuned = self.parameters[modality]
        parameters = widest_of(tuned.values()) if asked_by is None else dict(tuned[asked_by])
        if "k_factor" in parameters:
            same = -(-parameters["k_factor"] * RECALL_AT // max(1, k))
            parameters["k_factor"] = max(LEAST_FACTOR, same)
        return parameters


class IndexManifest(Record):
    """What an index holds, what it was made from, what was promised and measured."""

    schema_version: int = SCHEMA_VERSION
    encoder: str
    weights_digest: str
    dim: int
    num_rows: int
    corpus_digest: str
    embeddings_digest: str
    promise: Promise | None
    num_queries: int
    measured: dict[Modality, dict[Modality, Measurement]]
    """By index, then by the kind of query: over all segments, weighed by their rows."""
    frontier: list[Measurement]
    """Everything that was tried before the kind was chosen; empty where none was promised."""
    segments: list[Segment]
    files: dict[str, str]
    """sha256 by path within the folder, of all segments."""

    @property
    def parts(self) -> list[Part]:
        """In the order of the row numbers."""
        return [part for segment in self.segments for part in segment.parts]

    @property
    def kind(self) -> str:
        """Every kind in it, by faiss's factory strings."""
        return " + ".join(sorted({kind for one in self.segments for kind in one.kinds.values()}))

    @property
    def groups_name(self) -> str:
        """The path, within the folder, of the groups of all rows."""
        return f"{self.segments[-1].name}{GROUPS}"

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name the answers: the same rows, indices and search parameters."""
        settings = [segment.parameters for segment in self.segments]
        return digest_of([self.files, settings])


def index_name(modality: Modality) -> str:
    return f"{modality}.index"
