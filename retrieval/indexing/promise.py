"""What is asked of an index, read from words such as 8GB and 20ms, and refused in one line."""

import math
import re
from collections.abc import Sequence

from infra.errors import ConfigError
from retrieval.embedding.embeddings import Modality
from retrieval.indexing.kinds import build_bytes, estimated_bytes
from retrieval.indexing.manifest import Measurement, Promise

PROCESS_BYTES = 250 * 10**6
"""A budget for the program itself; with its libraries, before any vector, it takes some 100 MB."""
SAMPLE_SHARE = 8
"""A training sample takes at most the RAM divided by this, and the sample that kinds are compared
on, both modalities together, as much."""

LEAST_MS = 0.001
"""As finely as times are written down."""
MARGIN = 1.2
"""Of the p99 that a refusal names: no two measurements give the same."""

COMPACT = "--compact, which makes one index of all rows within the whole promise"

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def promise_of(recall: float | None, ram: str | None, p99: str | None) -> Promise | None:
    """Raises ConfigError where a part is missing or can't be read."""
    if recall is None:
        for name, value in (("ram", ram), ("p99", p99)):
            if value is not None:
                raise ConfigError(
                    f"{name} {value!r} without recall: a promise begins with what is to be found; "
                    "give --recall 0.95 as well, or leave it out"
                )
        return None
    if ram is None:
        raise ConfigError(
            f"recall {recall:g} without ram: say what memory it is to be kept within, as in "
            "--ram 8GB"
        )
    return Promise(
        recall=recall, ram_bytes=_bytes(ram), p99_ms=None if p99 is None else _milliseconds(p99)
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if not found or (found[3] and not found[2]):
        raise ConfigError(f"ram {text!r}: expected a size such as 8GB, 500MB or 2GiB")
    return int(float(found[1]) * (_BINARY if found[3] else _BYTES)[found[2]])


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip().lower())
    if not found:
        raise ConfigError(f"p99 {text!r}: expected a time such as 20ms or 0.5s")
    return float(found[1]) * _MS[found[2]]


def in_words(size_bytes: float) -> str:
    """Rounded up, so that what is asked for next time suffices."""
    for suffix, unit in (("GB", 10**9), ("MB", 10**6)):
        if size_bytes >= unit:
            tenths = -(-int(size_bytes) * 10 // unit)
            return f"{tenths / 10:g}{suffix}"
    return "1MB"


def ms_in_words(ms: float) -> str:
    """Rounded up, to two digits, for the same reason."""
    unit = 10.0 ** (math.floor(math.log10(ms)) - 1)
    return f"{math.ceil(ms / unit) * unit:.10g}ms"


def ram_needed(kind: str, num_rows: int, dim: int, held_bytes: float = 0.0) -> float:
    """For both modalities' indices in searches, beside the segments that are held already, and for
    building one after the other, which those have no part in."""
    building = build_bytes(kind, num_rows, dim) + PROCESS_BYTES
    searching = held_bytes + 2 * estimated_bytes(kind, num_rows, dim)
    return max(searching, building / (1 - 2 / SAMPLE_SHARE))


def check_fits(
    promise: Promise, kinds: Sequence[str], num_rows: int, dim: int, held_bytes: float = 0.0
) -> list[str]:
    """Those kinds that fit the RAM, beside what is held already; raises ConfigError where none
    does."""
    needed = {kind: ram_needed(kind, num_rows, dim, held_bytes) for kind in kinds}
    fitting = [kind for kind in kinds if needed[kind] <= promise.ram_bytes]
    if not fitting:
        least = min(needed, key=lambda kind: needed[kind])
        enough = in_words(needed[least])
        raise ConfigError(
            f"ram {in_words(promise.ram_bytes)}: too little for {num_rows:,} rows of "
            f"{dim}{_beside(promise, held_bytes)}; the smallest kind tried ({least}) needs "
            + (f"{enough} in all: give {COMPACT}" if held_bytes else f"--ram {enough}")
        )
    return fitting


def refusal(
    promise: Promise,
    modality: Modality,
    measured: Sequence[Measurement],
    kinds: Sequence[str],
    num_rows: int,
    dim: int,
    held_bytes: float = 0.0,
) -> ConfigError:
    """What was measured within the promise, and what would have to give."""
    ways = []
    by_kind = [
        [one for one in measured if one.kind == kind and one.num_rows == rows]
        for kind, rows in {(one.kind, one.num_rows): None for one in measured}
    ]
    quick = [both for both in by_kind if _slowest(both) <= (promise.p99_ms or float("inf"))]
    found = max((min(one.recall_at_10 for one in both) for both in quick), default=0.0)
    if 0 < found < promise.recall:
        ways.append(f"--recall {int(found * 100) / 100:g}")
    reaching = [both for both in by_kind if min(one.recall_at_10 for one in both) >= promise.recall]
    if reaching and promise.p99_ms is not None:
        slowest = max(min(map(_slowest, reaching)), LEAST_MS)
        ways.append(f"--p99 {ms_in_words(slowest * MARGIN)}")
    larger = [
        needed
        for kind in kinds
        if (needed := ram_needed(kind, num_rows, dim, held_bytes)) > promise.ram_bytes
    ]
    if held_bytes:
        # What is promised can't change for one segment of several.
        ways = [COMPACT]
    elif larger:
        ways.append(f"--ram {in_words(min(larger))}")
    p99 = f" and p99 {promise.p99_ms:g} ms" if promise.p99_ms is not None else ""
    return ConfigError(
        f"recall {promise.recall:g} within {in_words(promise.ram_bytes)}{p99}: can't be promised "
        f"for the {modality} index of {num_rows:,} rows of {dim}{_beside(promise, held_bytes)}; "
        "what was measured would allow "
        + (" or ".join(ways) or "nothing better: leave the promise out, or give a --kind instead")
    )


def _beside(promise: Promise, held_bytes: float) -> str:
    if not held_bytes:
        return ""
    share = " and their share of p99" if promise.p99_ms is not None else ""
    return f" beside the segments before, which take {in_words(held_bytes)}{share}"


def _slowest(measured: Sequence[Measurement]) -> float:
    return max(one.p99_ms or 0.0 for one in measured)
