"""One picture with its caption, and the members of a tar that it is.

{key}.jpg   the picture (or .png, .webp)      {key}.txt   the caption
{key}.json  the sample's row of the parquet, as img2dataset writes it
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pipeline import tar


@dataclass(frozen=True)
class Sample:
    """One picture with its caption, as stored in a tar."""

    key: str
    uid: str
    caption: str
    image: bytes
    extension: str
    """Of the picture's member: "jpg", "png", "webp"."""
    metadata: dict[str, Any]
    """The member {key}.json: the sample's row in the parquet."""


@dataclass(frozen=True)
class PackedSample:
    """A sample as the bytes that it takes in a tar."""

    key: str
    image_size: int
    members: bytes
    """The picture's member first."""


def sample_uid(url: str, caption: str) -> str:
    """32 hex digits: the first 128 bits of sha256 over url, NUL, caption."""
    return hashlib.sha256(f"{url}\0{caption}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def pack_sample(sample: Sample) -> PackedSample:
    contents = {
        sample.extension: sample.image,
        "txt": sample.caption.encode("utf-8", "replace"),
        "json": _metadata_text(sample.metadata).encode("utf-8", "replace"),
    }
    members = (tar.member(f"{sample.key}.{name}", data) for name, data in contents.items())
    return PackedSample(sample.key, len(sample.image), b"".join(chain.from_iterable(members)))


def _metadata_text(metadata: dict[str, Any]) -> str:
    """json.dumps with indent=4, as img2dataset writes it."""
    if not metadata or any(isinstance(value, dict | list | tuple) for value in metadata.values()):
        return json.dumps(metadata, indent=4, ensure_ascii=False, sort_keys=True)
    # Only without `indent` does Python's json use its encoder in C; a flat object is the same.
    return "{\n    " + _FLAT_JSON.encode(metadata)[1:-1] + "\n}"


_FLAT_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",\n    ", ": "))


def unpack_sample(members: bytes) -> Sample:
    """A sample from the members of a tar that it is."""
    ((key, by_extension),) = group_members(tar.iter_members(io.BytesIO(members)))
    return sample_of(key, by_extension)


def group_members(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, members = "", dict[str, bytes]()
    for name, content in files:
        stem, _, extension = name.partition(".")
        if stem != key and members:
            yield key, members
            members = {}
        key = stem
        members[extension] = content
    if members:
        yield key, members


def sample_of(key: str, members: dict[str, bytes]) -> Sample:
    metadata = json.loads(members.pop("json"))
    caption = members.pop("txt").decode("utf-8")
    ((extension, image),) = members.items()
    return Sample(key, metadata["uid"], caption, image, extension, metadata)
