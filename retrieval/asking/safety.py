"""What safe mode goes by: the safety signals that were scored on a corpus.

Reads   nothing: what was scored is known to the index's state
"""

from typing import TYPE_CHECKING

from infra.errors import InputError

if TYPE_CHECKING:
    from retrieval.live.snapshot import Snapshot

RULES = {
    # What clip-retrieval's back end hides, too (clip_back.py, get_unsafe_items).
    "clip_safety": "punsafe <= 0.5",
    # As in the policy `recommended`.
    "safety": "nudity_exposed < 0.5",
}
"""SQL that is true of what may be shown, by signal; what has no score is not known to be safe."""


def safety_rule(state: "Snapshot") -> str | None:
    """All rules whose signals are there, as one expression; None where none is."""
    scored = state.columns.complete
    return " AND ".join(rule for signal, rule in RULES.items() if signal in scored) or None


def no_safety(root: str) -> InputError:
    return InputError(
        f"{root}: safe mode has no safety columns to go by; run `carrara score {root} --signals "
        "safety` (nudity), or `--signals clip_safety` with LAION's head, or ask without it"
    )
