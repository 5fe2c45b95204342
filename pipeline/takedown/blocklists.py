"""Lists of hashes that no picture of a corpus may have: abuse material, above all.

    carrara forget ROOT --blocklist hashes.txt my_module:MyBlocklist

A file has one hash a line, `md5:`, `sha256:` or `pdq:` before it (without, 32 digits are md5 and 64
are sha256); an empty line or one that begins with # is skipped. A list of your own is a class that
fits `Blocklist`, given as "module:Class": it may ask a service that never gives its hashes away.

What is asked: the sha256 of the bytes as fetched, md5 and sha256 of the picture as stored, and its
PDQ hash. Lists of md5 or sha256 hold hashes of original files, which a corpus that resized its
pictures meets only by the sha256 as fetched.
"""

import hashlib
import importlib
from typing import Protocol, cast

from infra import storage
from infra.errors import ConfigError, InputError
from pipeline.picture_hash import from_hex
from pipeline.takedown.blocklist_names import names_class
from pipeline.takedown.near_hashes import NearHashes
from pipeline.takedown.tombstones import NEAR

HEX_DIGITS = {"md5": 32, "sha256": 64, "pdq": 64}


class Blocklist(Protocol):
    """Made without arguments, once in the command's own process and once in each worker."""

    def matches(
        self, sha256: str | None, md5: str | None, picture_hash: bytes | None
    ) -> str | None:
        """What to call the match in the receipt, or None. Hex in lower case; PDQ as 32 bytes."""


class HashFile:
    """A file of hashes; pictures match up to PDQ's usual distance."""

    def __init__(self, url: str) -> None:
        self._name = url.rsplit("/", 1)[-1]
        hashes: dict[str, set[str]] = {kind: set() for kind in HEX_DIGITS}
        for number, line in enumerate(_lines(url), 1):
            if line and not line.startswith("#"):
                kind, value = _parse(line, f"blocklist {url}, line {number}")
                hashes[kind].add(value)
        self._md5, self._sha256 = hashes["md5"], hashes["sha256"]
        pictures = [from_hex(value) for value in sorted(hashes["pdq"])]
        self._pictures = NearHashes(pictures, [NEAR] * len(pictures))

    def matches(
        self, sha256: str | None, md5: str | None, picture_hash: bytes | None
    ) -> str | None:
        is_near = picture_hash is not None and self._pictures.find(picture_hash) is not None
        return self._name if sha256 in self._sha256 or md5 in self._md5 or is_near else None


def load_blocklist(reference: str) -> Blocklist:
    """Raises ConfigError for what is no class, InputError for what is no file of hashes."""
    if not names_class(reference):
        return HashFile(reference)
    module_name, _, class_name = reference.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"blocklist {reference!r}: {error}; expected a file of hashes, or module:Class that "
            "Python can import: is it installed, or in the folder you start from?"
        ) from error
    blocklist = make() if isinstance(make, type) else None
    if not callable(getattr(blocklist, "matches", None)):
        raise ConfigError(
            f"blocklist {reference!r}: no blocklist; expected a class with "
            "`matches(sha256, md5, picture_hash)`"
        )
    return cast(Blocklist, blocklist)


def match_of(
    blocklist: Blocklist, sha256: str | None, image: bytes, bits: bytes | None
) -> str | None:
    """Whether a sample is on the list: `sha256` is of the bytes as fetched, `image` as stored."""
    stored = hashlib.sha256(image).hexdigest()
    md5 = hashlib.md5(image, usedforsecurity=False).hexdigest()
    return blocklist.matches(sha256, None, bits) or blocklist.matches(stored, md5, None)


def _lines(url: str) -> list[str]:
    try:
        return [line.strip().lower() for line in storage.read_text(url).splitlines()]
    except FileNotFoundError:
        raise InputError(
            f"blocklist {url}: no such file; expected a file of hashes, or module:Class"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"blocklist {url}: not text; expected one hash a line") from None


def _parse(line: str, place: str) -> tuple[str, str]:
    kind, colon, value = line.rpartition(":")
    if not colon:
        kind = "md5" if len(value) == HEX_DIGITS["md5"] else "sha256"
    is_hex = not set(value) - set("0123456789abcdef")
    if not is_hex or HEX_DIGITS.get(kind) != len(value):
        raise InputError(
            f"{place}: {line[:80]!r}; expected md5:, sha256: or pdq: and that hash's hex digits"
        )
    return kind, value
