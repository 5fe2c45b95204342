"""What to draw: a caption a picture, and for a super-resolution stage the small pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import ConfigError
from training.drawing.captions import checked
from training.drawing.pictures import find_pictures, read_pictures
from training.record import read_record


@dataclass(frozen=True)
class Wanted:
    captions: Sequence[str]
    """One a picture, in the order of their numbers."""
    num_each: int
    """Pictures a caption, which lie one after another."""
    small: np.ndarray | None = None
    """`[n, s, s, 3]` uint8, one a picture."""

    @classmethod
    def repeated(cls, captions: Sequence[str], num_each: int) -> "Wanted":
        return cls([caption for caption in captions for _ in range(num_each)], num_each)

    @classmethod
    def enlarged(cls, run: str, small: str) -> "Wanted":
        """The pictures at this place, in their order, with their own captions."""
        size = read_record(run).config.space.upscale_from
        if size is None:
            raise ConfigError(f"{run}: is no super-resolution stage: expected no --small")
        pictures = [one for chunk in find_pictures(small) for one in read_pictures(chunk, size)]
        captions = checked([picture.caption for picture in pictures], small)
        return cls(captions, 1, np.stack([np.asarray(picture.image) for picture in pictures]))

    @property
    def rows(self) -> list[str]:
        """The captions of a grid's rows."""
        return list(self.captions[:: self.num_each])
