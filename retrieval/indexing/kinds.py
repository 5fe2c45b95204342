"""The kinds of index that a promise is kept with, and the memory each takes, by formula.

n rows of d dimensions. Each kind is a faiss factory string.

    Flat                               exact; 4 d bytes a row
    HNSW32,SQfp16                      a graph; 2 d + 8 m + ~13
    IVF{l},SQ8                         lists of vectors of 8 bits a dimension; d + 8
    IVF{l},RaBitQfs,Refine(...)        lists of 1 bit a dimension to find candidates, which are
                                       compared again with finer vectors; d / 8 + 8 + 8 and finer
    IVF{l},PQ{d/4}x4fs,Refine(...)     the same with product quantization; d / 8 + 8 and finer

The finer vectors are SQ4, SQ8 or SQfp16: 4, 8 or 16 bits a dimension, d / 2, d or 2 d bytes.
"""

import math
import re

import faiss

from infra.errors import ConfigError

MAX_FLAT = 50_000
"""Rows up to which the exact scan is quick enough (github.com/facebookresearch/faiss/wiki,
"Guidelines to choose an index")."""
MAX_GRAPH = 100_000
"""Rows up to which a graph is tried: it is built on one thread, or its bytes would depend on how
many there are and how they met; that takes a millisecond a row."""
GRAPH_LINKS = 32
BLOCK = 32
"""Rows that fast-scan lists keep together; the last block of a list is filled up."""

RABITQ_FACTORS = 8
"""Bytes that RaBitQ adds to a row's bits: its distance from the centroid, and a scale."""

_FINE = {"SQ4": 0.5, "SQ6": 0.75, "SQ8": 1.0, "SQfp16": 2.0, "Flat": 4.0}
"""Bytes a dimension."""


def default_kind(num_rows: int, dim: int) -> str:
    """Where nothing is promised."""
    return "Flat" if num_rows <= MAX_FLAT else f"IVF{num_lists(num_rows)},{_listed_pq(dim)}"


def candidates(num_rows: int, dim: int) -> list[str]:
    """Kinds to try for so many rows, for a corpus that is too large for Flat alone."""
    lists = num_lists(num_rows)
    pq, rabitq = f"PQ{dim // 4}x4fs" if dim % 4 == 0 else "", "RaBitQfs"
    kinds = ["Flat"]
    if num_rows <= MAX_GRAPH:
        kinds.append(f"HNSW{GRAPH_LINKS},SQfp16")
    kinds += [f"IVF{lists},SQ8"]
    for fine in ("SQfp16", "SQ8", "SQ4"):
        kinds += [f"IVF{lists},{coarse},Refine({fine})" for coarse in (pq, rabitq) if coarse]
    return kinds


def num_lists(num_rows: int) -> int:
    """4 sqrt(n) to 16 sqrt(n), says faiss's guide; the power of two nearest to the first."""
    return 1 << max(0, round(math.log2(4 * num_rows**0.5)))


def _listed_pq(dim: int) -> str:
    return f"PQ{dim // 4}x4fs,Refine(SQfp16)" if dim % 4 == 0 else "RaBitQfs,Refine(SQfp16)"


def for_rows(kind: str, num_rows: int) -> str:
    """The same kind for another number of rows."""
    return re.sub(r"^IVF\d+", f"IVF{num_lists(num_rows)}", kind)


def lists_of(kind: str) -> int | None:
    found = re.search(r"IVF(\d+)", kind)
    return int(found[1]) if found else None


def estimated_bytes(kind: str, num_rows: int, dim: int) -> float:
    """Of an index of one of the candidate kinds, in a file and in memory."""
    first, *rest = kind.split(",")
    refined = 0.0
    if rest and rest[-1].startswith("Refine("):
        refined = num_rows * dim * _FINE[rest.pop()[len("Refine(") : -1]]
    lists = lists_of(kind)
    if lists is None:
        return refined + num_rows * (_graph_bytes(first) + dim * _FINE[rest[0] if rest else first])
    # An id of 8 bytes a row; a centroid, and the length, of each list.
    fixed = num_rows * 8 + lists * (4 * dim + 8)
    return refined + fixed + _listed_bytes(rest[0], num_rows, lists, dim)


def _graph_bytes(kind: str) -> float:
    """A row: 2 m links of 4 bytes on the lowest level, m on each higher one, of which a row has
    1 / (m - 1) in the mean; its level, and where its links begin (faiss, HNSW.h)."""
    if not kind.startswith("HNSW"):
        return 0
    links = int(kind[len("HNSW") :])
    return 8 * links + 4 * links / (links - 1) + 12


def _listed_bytes(code: str, num_rows: int, lists: int, dim: int) -> float:
    if code in _FINE:
        return num_rows * dim * _FINE[code]
    # Half a block of each list stands empty in the mean.
    num_places = num_rows + lists * BLOCK / 2
    if code == "RaBitQfs":
        return num_places * (dim / 8 + RABITQ_FACTORS)
    # A code of 4 bits a part; 16 centroids of each part, which together are 16 vectors.
    return num_places * int(code[2 : code.index("x")]) / 2 + 16 * 4 * dim


def build_bytes(kind: str, num_rows: int, dim: int) -> float:
    """What building such an index holds at its peak, build.py's sample apart.

    A graph's links grow by doubling: the old ones are there while the new are filled.
    """
    whole = estimated_bytes(kind, num_rows, dim)
    return whole + num_rows * _graph_bytes(kind.split(",")[0])


def check_kind(kind: str, num_rows: int, dim: int) -> None:
    """Raises ConfigError for a kind that faiss doesn't know or can't build over so many rows."""
    try:
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise unusable(kind, num_rows, dim, error) from error
    if isinstance(index, faiss.IndexIDMap):
        raise unusable(kind, num_rows, dim, "it takes ids of its own; here they are the rows")
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None and ivf.nlist > num_rows:
        raise unusable(kind, num_rows, dim, f"{ivf.nlist:,} lists are more than the rows")


def unusable(kind: str, num_rows: int, dim: int, reason: object) -> ConfigError:
    # faiss puts the C++ function and its source line before the reason.
    text = re.sub(r"^Error in .* at \S+: ", "", str(reason).splitlines()[0])
    return ConfigError(
        f"kind {kind!r}: faiss can't build it over {num_rows:,} rows of {dim} ({text}); leave it "
        "out, or give a faiss factory string such as HNSW32 or IVF64,SQ8"
    )
