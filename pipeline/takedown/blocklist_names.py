"""How a blocklist is named: the place of a file of hashes, or module:Class of one's own.

Imports nothing heavy, so that a stage can have such settings for free.
"""

from typing import Annotated

from pydantic import AfterValidator

from infra import storage
from infra.config import without_password
from infra.errors import InputError


def names_class(reference: str) -> bool:
    return reference.partition(":")[2].isidentifier()


def blocklist_digest(reference: str) -> str:
    """What a file holds, wherever it is; a class may ask a service, so its name has to do."""
    if names_class(reference):
        return reference
    try:
        return f"sha256:{storage.sha256(reference)[:16]}"
    except FileNotFoundError:
        raise InputError(
            f"blocklist {reference}: no such file; expected a file of hashes, or module:Class"
        ) from None


def _placed(reference: str) -> str:
    return reference if names_class(reference) else storage.absolute(without_password(reference))


BlocklistName = Annotated[str, AfterValidator(_placed)]
"""Absolute where it is a file: workers anywhere find it."""
