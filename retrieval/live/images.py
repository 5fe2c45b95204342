"""The pictures of samples, each by one ranged read of its shard.

Reads   ROOT/shards/

Where a picture lies is in its row of the index; after a takedown its shard is another, and the
picture lies elsewhere. The member that follows it tells whose it is: what is not this sample's is
looked up again in the shard as it is now.
"""

import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import DamagedError
from pipeline import tar
from pipeline.corpus import PLACE_SCHEMA, shard_url

TAIL_BYTES = 1 << 14
"""Read behind a picture, for its caption and the JSON that names it; mostly enough."""
MAX_TAIL_BYTES = 1 << 23
NUM_THREADS = 8
"""Pictures read at once, for the sake of object stores."""

WAITS_S = (0.02, 0.1, 0.5, 2.0)
"""A takedown that is under way puts a shard's tar into its place, then its parquet."""

Place = tuple[int, int]
"""Offset and size of a picture's bytes in its tar."""


Wanted = dict[str, list[tuple[str, Place | None]]]
"""By shard, the samples' uids and where their pictures lay."""


def read_images(
    root: str, wanted: Wanted, on_damage: Callable[[DamagedError], None] | None = None
) -> dict[str, bytes]:
    """Encoded pictures by uid; those that were taken down are left out.

    Raises DamagedError for a shard that lacks what it lists, unless `on_damage` is to hear of it:
    then its pictures are left out, too.
    """
    asked = [(shard, *sample) for shard, samples in wanted.items() for sample in samples]

    def read(sample: tuple[str, str, Place | None]) -> bytes | None:
        shard, uid, place = sample
        try:
            return None if place is None else _image_at(root, shard, place, uid)
        except DamagedError:  # told of below, for its shard at once
            return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        images = dict(zip([uid for _, uid, _ in asked], pool.map(read, asked), strict=True))
    for shard, samples in wanted.items():
        if lost := [uid for uid, _ in samples if images[uid] is None]:
            try:
                images |= _as_it_is_now(root, shard, lost)
            except DamagedError as error:
                if on_damage is None:
                    raise
                on_damage(error)
    return {uid: image for uid, image in images.items() if image is not None}


def _as_it_is_now(root: str, shard: str, uids: list[str]) -> dict[str, bytes]:
    for wait_s in WAITS_S:
        images, missed = _listed(root, shard, uids)
        if not missed:
            return images
        time.sleep(wait_s)
    raise _damaged(root, shard_url(root, shard), f"does not hold {missed[0]} where it should")


def _listed(root: str, shard: str, uids: list[str]) -> tuple[dict[str, bytes], list[str]]:
    """Pictures by uid, and of which nothing lies where the shard's parquet says that they do."""
    url = shard_url(root, shard, ".parquet")
    try:
        table = storage.read_table(url, ["uid", *PLACE_SCHEMA.names])
    except FileNotFoundError:
        raise _damaged(root, url, "is missing") from None
    rows = table.filter(pc.is_in(table["uid"], pa.array(uids, pa.string()))).to_pylist()
    images, missed = {}, []
    for row in rows:
        if row["image_offset"] is not None:  # else it was taken down
            place = row["image_offset"], row["image_size"]
            image = _image_at(root, shard, place, row["uid"])
            if image is None:
                missed.append(row["uid"])
            else:
                images[row["uid"]] = image
    return images, missed


def _image_at(root: str, shard: str, place: Place, uid: str) -> bytes | None:
    """None where something else lies there."""
    offset, size = place
    tail = TAIL_BYTES
    while tail <= MAX_TAIL_BYTES:
        start = offset - tar.BLOCK
        try:
            data = storage.read_range(shard_url(root, shard), start, offset + size + tail)
            members = islice(tar.iter_members(io.BytesIO(data)), 3)
            image, _, row = (content for _, content in members)
            return image if json.loads(row)["uid"] == uid else None
        except EOFError:
            tail *= 8
        except (KeyError, TypeError, ValueError):  # no sample begins there
            return None
        except FileNotFoundError:
            raise _damaged(root, shard_url(root, shard), "is missing") from None
    return None


def _damaged(root: str, url: str, what: str) -> DamagedError:
    return DamagedError(f"{url}: {what}; `carrara verify {root}` tells what is damaged")
