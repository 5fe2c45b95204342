"""Who is at a slice: the worker that began it last.

    ROOT/download/claims/00000    the token of the attempt that may write the shard

A machine that was cut off from the others works on: its fetches all fail, its slice goes to another
worker, and when it is back it would write a shard of failures over the one that is whole, or into a
corpus that is complete. Each attempt at a slice begins with a claim and writes only while that is
the last one; what the driver gives out again always begins after what it replaces.

Between looking and writing an attempt may still be overtaken. It has its answers by then, so it
writes the same bytes as the other.
"""

import secrets
from dataclasses import dataclass

from infra import storage
from infra.errors import ConflictError
from pipeline.downloading.worklist import folder_url


@dataclass(frozen=True)
class Claim:
    """One attempt's word that the slice is its own."""

    url: str
    shard: str
    token: str

    @classmethod
    def of(cls, root: str, shard: str) -> "Claim":
        """The latest, from now on."""
        claim = cls(folder_url(root, "claims", shard), shard, secrets.token_hex(8))
        storage.publish_text(claim.url, claim.token)
        return claim

    def check(self) -> None:
        """Before anything is written; raises ConflictError where it isn't the last any more."""
        if not storage.exists(self.url):
            raise ConflictError(f"shard {self.shard}: the download ended meanwhile")
        if storage.read_text(self.url) != self.token:
            raise ConflictError(f"shard {self.shard}: another worker has begun it since")
