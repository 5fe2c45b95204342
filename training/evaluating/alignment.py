"""Do the pictures show what their captions say? Similarity and retrieval in an encoder's space.

Shapes: n pictures, one caption each; d the width of the space. Rows are unit vectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS_AT_ONCE = 2048


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """The cosine of each picture and its caption, `[n]` (CLIP score, Hessel et al. 2021, without
    its factor of 2.5 and its floor at 0)."""
    return (images * texts).sum(1)


def is_own_caption_first(images: Tensor, texts: Tensor, captions: Sequence[str]) -> Tensor:
    """Whether each picture is nearer to its caption than to any other of the set: bool `[n]`.

    Equal captions are one. A tie with another caption is a miss.
    """
    first = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    kept = sorted(first.values())
    column = {row: i for i, row in enumerate(kept)}
    own = torch.tensor([column[first[caption]] for caption in captions], device=images.device)
    others = texts[torch.tensor(kept, device=texts.device)]
    found = []
    parts = zip(torch.split(images, ROWS_AT_ONCE), torch.split(own, ROWS_AT_ONCE), strict=True)
    for rows, places in parts:
        scores = rows @ others.T
        wanted = scores.gather(1, places[:, None]).squeeze(1)
        found.append((scores >= wanted[:, None]).sum(1) == 1)
    return torch.cat(found)
