"""Memory for the pixels of batches, used again when nobody holds a batch any more.

Fresh memory is zeroed and mapped by the system page by page when it is first written to, which for
the pixels of a batch costs several per cent of decoding them.
"""

import math
import weakref

import numpy as np
import torch
from torch import Tensor


class PixelMemory:
    """Gives uint8 tensors; from any thread."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Of that shape, with anything in it."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = bytearray()
        if len(memory) < size:  # of what is asked for, the largest stays
            memory = bytearray(size)
        # Every view of the tensor, in torch or NumPy, keeps this array.
        pixels = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(pixels, self._free.append, memory).atexit = False
        return torch.from_numpy(pixels.reshape(shape))
