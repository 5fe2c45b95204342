"""From which step on a run has left out what was taken down while it went on.

    RUN/ledger/takedowns-0-64.json    of a worker with the positions 0 to 63 of the batch: from
                                      which step on it followed which state of the corpora

Written at a takedown alone, and when a run is taken up again after one. Imports no torch.
"""

import json
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.records import read_mapping


class Followed(BaseModel):
    """A worker's positions, and the digests that the corpora had for it from a step on."""

    model_config = ConfigDict(frozen=True)

    step: int
    start: int
    stop: int
    digests: list[str]


def note_takedowns(run: str, step: int, positions: range, digests: list[str]) -> None:
    url = storage.join(run, "ledger", f"takedowns-{positions.start}-{positions.stop}.json")
    before = read_mapping(url)["followed"] if storage.exists(url) else []
    now = Followed(step=step, start=positions.start, stop=positions.stop, digests=digests)
    storage.publish_text(url, json.dumps({"followed": [*before, now.model_dump()]}, indent=2))


def followed_takedowns(run: str) -> Iterator[Followed]:
    folder = storage.join(run, "ledger")
    for name in storage.list_names(folder):
        if name.startswith("takedowns-"):
            for one in read_mapping(storage.join(folder, name))["followed"]:
                yield Followed.model_validate(one)
