"""Which samples a run is never trained on, so that its loss on them tells what it has learnt.

Imports no torch, for `carrara why` asks too.
"""

_BITS = 32


def is_held_out(uid: str, share: float) -> bool:
    """A pure function of the uid, itself a sha256: the same sample is held out in every run with
    this share, in any shard, selection or mixture; what is held out at a smaller share is at a
    larger one too."""
    return int(uid[: _BITS // 4], 16) < share * (1 << _BITS)
