"""Maximum mean discrepancy between two sets of features: KID and CMMD.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

by its unbiased estimate (Gretton et al. 2012, equation 3): pairs of a picture with itself are left
out, so that for two sets of one distribution it is 0 on average, and may be negative.

Shapes: n and m pictures, d features, b resamples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from training.evaluating.bootstrap import Score, score_of

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Features `[n, d]`, `[m, d]` -> `[n, m]`."""

CMMD_SIGMA = 10.0
"""Width of the Gaussian kernel; Jayasumana et al. 2024, section 4."""
CMMD_SCALE = 1000.0
"""What they multiply the distance by, for numbers that read well."""

ROWS_AT_ONCE = 2048
ROWS_OF_OWN = 64
"""Only the diagonal is wanted of these blocks."""


def polynomial(gamma: float) -> Kernel:
    """(gamma x.y + 1)^3: KID's kernel (Binkowski et al. 2018, section 4), gamma 1/d there."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (gamma * (x @ y.T) + 1) ** 3

    return kernel


def gaussian(sigma: float = CMMD_SIGMA) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return torch.exp(-squared.clamp(min=0) / (2 * sigma**2))

    return kernel


def mmd_score(
    x: Tensor, y: Tensor, kernel: Kernel, weights: tuple[Tensor, Tensor], scale: float = 1.0
) -> Score:
    """Of features `[n, d]` and `[m, d]`; `weights` [b, n] and [b, m] are their resamples.

    With all pictures at once it is the mean over all subsets of any one size, of which KID is
    usually estimated from a hundred.
    """
    x, y = x.double(), y.double()
    w_x, w_y = (torch.cat([part.new_ones(1, part.shape[1]), part]).to(x.device) for part in weights)
    within = _mean_within(x, kernel, w_x) + _mean_within(y, kernel, w_y)
    num_pairs = w_x.sum(1) * w_y.sum(1)
    distances = scale * (within - 2 * _sums(x, y, kernel, w_x, w_y) / num_pairs)
    return score_of(distances[0].item(), distances[1:])


def mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """The unbiased estimate of MMD^2 alone."""
    x, y = x.double(), y.double()
    w_x, w_y = x.new_ones(1, len(x)), y.new_ones(1, len(y))
    within = _mean_within(x, kernel, w_x) + _mean_within(y, kernel, w_y)
    return (within - 2 * _sums(x, y, kernel, w_x, w_y) / (len(x) * len(y))).item()


def _mean_within(x: Tensor, kernel: Kernel, weights: Tensor) -> Tensor:
    """The mean of k over pairs of different pictures, for each resample: `[b]`.

    A picture that came up twice makes no pair with its copy: that would be k(x, x).
    """
    parts = torch.split(x, ROWS_OF_OWN)
    own = torch.cat([kernel(rows, rows).diagonal() for rows in parts])
    squares = weights.square()
    total = _sums(x, x, kernel, weights, weights) - squares @ own
    return total / (weights.sum(1).square() - squares.sum(1))


def _sums(x: Tensor, y: Tensor, kernel: Kernel, w_x: Tensor, w_y: Tensor) -> Tensor:
    """The sum of w_x[i] w_y[j] k(x_i, y_j), for each resample: `[b]`."""
    total = x.new_zeros(len(w_x))
    for start in range(0, len(x), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        total += ((w_x[:, rows] @ kernel(x[rows], y)) * w_y).sum(1)
    return total
