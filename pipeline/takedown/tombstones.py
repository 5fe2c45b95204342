"""What was taken down for good: `forget` writes it, `download`, `pack`, `dedup` and `verify` ask.

    ROOT/tombstones.parquet    kind, value, max_distance, time, receipt

    tombstones = read_tombstones(root)                     # empty where nothing was taken down
    tombstones.reason(uid=uid, url=url, sha256=sha256)     # "taken down" or None
    tombstones.of_picture(picture_hash(pixels).bits)       # the same, of a near copy

A URL or a domain is kept as the digest of its plain form, so that the file refuses what it does not
tell. (Who knows a URL can still ask whether it is there.) A domain covers its subdomains.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.config import digest_of
from pipeline.takedown.near_hashes import NearHashes

TAKEN_DOWN = "taken down"
"""The `error_message` of a row that is refused or was forgotten."""

NEAR = 31
"""Bits, of PDQ's 256, in which near copies may differ (Facebook 2019, section 4.1)."""

Kind = Literal["uid", "url", "domain", "sha256", "picture"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("value", pa.string()),
        ("max_distance", pa.int32()),
        ("time", pa.string()),
        ("receipt", pa.string()),
    ]
)


@dataclass(frozen=True)
class Tombstone:
    """One thing that may never come back."""

    kind: Kind
    value: str
    """The uid, the sha256 of the bytes as fetched, `url_digest`, `domain_digest` or PDQ's hex."""
    max_distance: int | None
    """Of a picture: how many bits a near copy's hash may differ in."""
    time: str
    """When it was asked for, UTC."""
    receipt: str
    """Name of the receipt within ROOT/receipts."""

    @property
    def identity(self) -> tuple[str, str, int]:
        return self.kind, self.value, self.max_distance or 0


class Tombstones:
    """All tombstones of a corpus, ready to be asked about row after row. It can be pickled."""

    def __init__(self, stones: Iterable[Tombstone] = ()) -> None:
        # The first one to ask for it gives the time.
        by_identity = {stone.identity: stone for stone in reversed(list(stones))}
        self.stones = tuple(by_identity[identity] for identity in sorted(by_identity))
        self._values: dict[Kind, frozenset[str]] = {
            kind: frozenset(stone.value for stone in self.stones if stone.kind == kind)
            for kind in KINDS
        }

    def __len__(self) -> int:
        return len(self.stones)

    @property
    def digest(self) -> str:
        """16 hex digits: the same things taken down, the same digest."""
        return digest_of([stone.identity for stone in self.stones])

    @property
    def has_pictures(self) -> bool:
        """Whether `of_picture` can say anything, so that hashes are worth computing."""
        return bool(self._values["picture"])

    def values(self, kind: Kind) -> frozenset[str]:
        return self._values[kind]

    def reason(
        self, *, uid: str | None = None, url: str | None = None, sha256: str | None = None
    ) -> str | None:
        """Why a row may not be there, by what is known of it; None: it may."""
        return TAKEN_DOWN if self.matched_by(uid=uid, url=url, sha256=sha256) else None

    def matched_by(
        self, *, uid: str | None = None, url: str | None = None, sha256: str | None = None
    ) -> Kind | None:
        """What kind of tombstone a row falls under."""
        values = self._values
        if uid in values["uid"]:
            return "uid"
        if sha256 in values["sha256"]:
            return "sha256"
        if url and values["url"] and url_digest(url) in values["url"]:
            return "url"
        if url and values["domain"] and not values["domain"].isdisjoint(_domain_digests(url)):
            return "domain"
        return None

    def matched_rows(self, rows: pa.Table) -> dict[int, Kind]:
        """The rows of a shard's parquet that fall under a tombstone, by their numbers. It needs
        uid, url, caption, sha256 and error_message."""
        candidates = pc.or_(
            pc.is_in(rows["uid"], value_set=_texts(self._values["uid"])),
            pc.is_in(rows["sha256"], value_set=_texts(self._values["sha256"])),
        )
        if self._values["url"] or self._values["domain"]:  # only here must each one be looked at
            candidates = pc.or_(candidates, pc.is_valid(rows["url"]))
        numbers = pc.indices_nonzero(candidates)
        matched: dict[int, Kind] = {}
        columns = ["uid", "url", "caption", "sha256", "error_message"]
        for number, row in zip(
            numbers.to_pylist(), rows.select(columns).take(numbers).to_pylist(), strict=True
        ):
            kind = self.matched_by(uid=row["uid"], url=row["url"], sha256=row["sha256"])
            if kind is not None and not is_redacted(row):
                matched[number] = kind
        return matched

    def of_picture(self, bits: bytes) -> str | None:
        """As `reason`, for a picture, by the 32 bytes of its perceptual hash."""
        return None if self._pictures.find(bits) is None else TAKEN_DOWN

    @cached_property
    def _pictures(self) -> NearHashes:
        stones = [stone for stone in self.stones if stone.kind == "picture"]
        return NearHashes(
            [bytes.fromhex(stone.value) for stone in stones],
            [stone.max_distance or 0 for stone in stones],
        )


def redact(rows: pa.Table, refused: pa.Array) -> pa.Table:
    """A shard's rows, with nothing left of the refused ones but their place and uid, and that they
    were taken down."""
    told = {"status": "failed_to_download", "error_message": TAKEN_DOWN}
    for i, field in enumerate(rows.schema):
        if field.name not in {"key", "uid"}:
            value = pa.scalar(told.get(field.name), field.type)
            rows = rows.set_column(i, field, pc.if_else(refused, value, rows[field.name]))
    return rows


def redact_refused(rows: pa.Table) -> pa.Table:
    """The same of the rows that `error_message` says were taken down."""
    return redact(rows, pc.fill_null(pc.equal(rows["error_message"], TAKEN_DOWN), False))


def is_redacted(row: Mapping[str, Any]) -> bool:
    """Whether nothing is left of a row but that it was taken down."""
    return row["error_message"] == TAKEN_DOWN and row["url"] is None and row["caption"] is None


def tombstones_url(root: str) -> str:
    return storage.join(root, "tombstones.parquet")


def read_tombstones(root: str) -> Tombstones:
    url = tombstones_url(root)
    if not storage.exists(url):
        return Tombstones()
    return Tombstones(Tombstone(**row) for row in storage.read_table(url).to_pylist())


def add_tombstones(root: str, stones: Iterable[Tombstone]) -> Tombstones:
    """From here on they are refused; returns all that there are. Nothing new, nothing written."""
    there = read_tombstones(root)
    both = Tombstones([*there.stones, *stones])
    if len(both) > len(there):
        write_tombstones(tombstones_url(root), both)
    return both


def write_tombstones(url: str, tombstones: Tombstones) -> None:
    rows = [vars(stone) for stone in tombstones.stones]
    storage.publish_table(url, pa.Table.from_pylist(rows, SCHEMA))


def url_digest(url: str) -> str:
    return hashlib.sha256(plain_url(url).encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=1 << 16)
def domain_digest(domain: str) -> str:
    return hashlib.sha256(plain_host(domain).encode("utf-8", "surrogatepass")).hexdigest()


def plain_url(url: str) -> str:
    """One form for all spellings of an address (RFC 3986, section 6.2), http or https alike."""
    try:
        parts = urlsplit(url.strip())
        port = "" if parts.port in {None, 80, 443} else f":{parts.port}"
    except ValueError:
        return url.strip()
    path, query = (re.sub("%[0-9A-Fa-f]{2}", _plain_escape, part) for part in parts[2:4])
    path, query = (
        quote(part, safe="/%:@!$&'()*+,;=?~", errors="surrogatepass") for part in (path, query)
    )
    return f"{plain_host(parts.hostname or '')}{port}{path or '/'}" + (f"?{query}" if query else "")


def plain_host(host: str) -> str:
    """Lower case, as DNS is asked for it."""
    host = host.strip().strip(".").lower()
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def _texts(values: Iterable[str]) -> pa.Array:
    return pa.array(sorted(values), pa.string())


def _domain_digests(url: str) -> list[str]:
    """Of the URL's host and of every domain that it is in."""
    try:
        labels = (urlsplit(url.strip()).hostname or "").strip(".").split(".")
    except ValueError:
        return []
    return [domain_digest(".".join(labels[i:])) for i in range(len(labels))]


def _plain_escape(escape: re.Match[str]) -> str:
    char = chr(int(escape[0][1:], 16))
    return char if char.isascii() and (char.isalnum() or char in "-._~") else escape[0].upper()
