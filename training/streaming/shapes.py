"""The shapes that pictures are trained in: one square, or a few rectangles of about its area.

Pictures go where their aspect ratio is nearest on a logarithmic scale, as in Podell et al. 2023
(SDXL), section 2.3. Imports no torch.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int]
"""Height and width in pixels."""


def shapes_for(image_size: int, max_aspect_ratio: float, side_multiple: int) -> tuple[Shape, ...]:
    """From the tallest to the widest, at most the square's area each and sides that are multiples;
    the square is among them. A ratio of 1: it alone."""
    if max_aspect_ratio == 1:
        return ((image_size, image_size),)
    area, shapes = image_size**2, {(image_size, image_size)}
    for side in range(side_multiple, area // side_multiple + 1, side_multiple):
        other = area // side // side_multiple * side_multiple
        if other and max(side / other, other / side) <= max_aspect_ratio:
            shapes.add((other, side))
    widest: dict[int, int] = {}
    for height, width in shapes:  # of one height, the shape that loses least of the area
        widest[height] = max(width, widest.get(height, 0))
    return tuple(sorted(widest.items(), key=lambda shape: shape[1] / shape[0]))


def nearest_shapes(
    widths: NDArray[np.float64], heights: NDArray[np.float64], shapes: tuple[Shape, ...]
) -> NDArray[np.uint8]:
    """For each picture the number of its shape."""
    ratios = np.log([width / height for height, width in shapes])
    bounds = [(left + right) / 2 for left, right in pairwise(ratios)]
    return np.searchsorted(bounds, np.log(widths / heights)).astype(np.uint8)


def merged(sizes: list[int], shapes: tuple[Shape, ...], least: int) -> list[int]:
    """For each shape the one that its pictures go to: those with fewer pictures than a batch has
    would repeat themselves within it, so they join their nearest neighbour that is large enough."""
    if max(sizes) < least:
        largest = sizes.index(max(sizes))
        return [largest] * len(sizes)
    ratios = np.log([width / height for height, width in shapes])
    large = [number for number, size in enumerate(sizes) if size >= least]
    return [min(large, key=lambda other: abs(ratios[other] - ratio)) for ratio in ratios]
