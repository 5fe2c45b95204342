"""What a training process and the processes beside it say to each other about parts of batches."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.errors import CarraraError

if TYPE_CHECKING:
    from training.streaming.batch import StreamSettings


@dataclass(frozen=True)
class Job:
    """What a process does until the socket is closed."""

    settings: "StreamSettings"
    positions: range
    memory: str
    """Name of the shared memory."""
    slot_bytes: int
    """Room for the pixels of a batch."""


@dataclass(frozen=True)
class Request:
    number: int
    step: int
    slot: int
    offset: int
    """Bytes of the slot that come before these positions, for one picture of the step's shape."""
    follow: bool
    """Look first whether something was taken down."""


@dataclass(frozen=True)
class Answer:
    number: int
    uids: list[str]
    captions: list[str]
    shape: tuple[int, ...] = ()
    error: CarraraError | None = None
