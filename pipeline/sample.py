"""One picture with its caption, and the members of a tar that it is.

{key}.jpg   the picture (or .png, .webp)      {key}.txt   the caption
{key}.json  the sample's row of the parquet, as img2dataset writes it
"""

import hashlib
import io
import json
from bisect import bisect_left
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
    parts: tuple[bytes | memoryview, ...]
    """Of its members, the picture's first. They may lie in a buffer that the next sample takes."""

    @property
    def members(self) -> bytes:
        return b"".join(self.parts)


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
    return PackedSample(sample.key, len(sample.image), tuple(chain.from_iterable(members)))


def key_of(members: bytes | memoryview) -> str:
    """Of a sample as it lies in a tar."""
    return tar.name_of(members).partition(".")[0]


def rekey(members: bytes | memoryview, new: dict[str, Any]) -> PackedSample | None:
    """A sample as `pack_sample` laid it in a tar, with `new` in its metadata, a key among it: the
    bytes that unpacking and packing it again would give, in a fraction of the time.

    Its parts lie in `members`, save what is new. None where it lies otherwise.
    """
    view, key = memoryview(members), new["key"]
    image_size = tar.size_of(view)
    txt_at = tar.num_bytes(image_size)
    if txt_at + tar.BLOCK > len(view):
        return None
    txt_size = tar.size_of(view[txt_at:])
    json_at = txt_at + tar.num_bytes(txt_size)
    if json_at + tar.BLOCK > len(view):
        return None
    image_name, txt_name, json_name = (tar.name_of(view[at:]) for at in (0, txt_at, json_at))
    old_key, _, extension = image_name.partition(".")
    if (txt_name, json_name) != (f"{old_key}.txt", f"{old_key}.json") or "/" in extension:
        return None
    begin = json_at + tar.BLOCK
    metadata = _with_entries(bytes(view[begin : begin + tar.size_of(view[json_at:])]), new)
    if metadata is None:
        return None
    words = (
        tar.header(f"{key}.txt", txt_size),
        view[txt_at + tar.BLOCK : json_at],
        *tar.member(f"{key}.json", metadata),
    )
    picture = tar.header(f"{key}.{extension}", image_size), view[tar.BLOCK : txt_at]
    return PackedSample(key, image_size, (*picture, b"".join(words)))


def _with_entries(text: bytes, new: dict[str, Any]) -> bytes | None:
    """What `_metadata_text` makes of the object that it has written as `text`, with `new` entries.

    None where that can't be told from its lines: of an object in which others lie, whose lines are
    further in, and perhaps of one with quotation marks.
    """
    if text[:7] != b'{\n    "' or b"\n     " in text or b'\\": ' in text:
        return None
    lines = text[7:-2].split(b',\n    "')
    for name, value in new.items():
        line = f'{name}": {_FLAT_JSON.encode(value)}'.encode()
        encoded = name.encode()
        at = bisect_left(lines, encoded, key=_name_in)
        has_it = at < len(lines) and _name_in(lines[at]) == encoded
        lines[at : at + has_it] = [line]
    return b'{\n    "' + b',\n    "'.join(lines) + b"\n}"


def _name_in(line: bytes) -> bytes:
    return line.partition(b'": ')[0]


def _metadata_text(metadata: dict[str, Any]) -> str:
    """json.dumps with indent=4, as img2dataset writes it."""
    if not metadata or any(isinstance(value, dict | list | tuple) for value in metadata.values()):
        return json.dumps(metadata, indent=4, ensure_ascii=False, sort_keys=True)
    # Only without `indent` does Python's json use its encoder in C; a flat object is the same.
    return "{\n    " + _FLAT_JSON.encode(metadata)[1:-1] + "\n}"


_FLAT_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",\n    ", ": "))


def unpack_sample(members: bytes | memoryview) -> Sample:
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
