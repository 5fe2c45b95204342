"""The Frechet distance between two sets of features, each taken for a Gaussian.

    d^2 = |mu_1 - mu_2|^2 + Tr(S_1) + Tr(S_2) - 2 Tr((S_1 S_2)^(1/2))

(Dowson & Landau 1982; Heusel et al. 2017, equation 6; what is reported is d^2, as there). It is
biased upwards by few pictures: compare only what was measured with equally many.

Shapes: n pictures, d features, r rows of a factor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.evaluating.bootstrap import Score, score_of


@dataclass(frozen=True)
class Gaussian:
    """A mean `[d]` and a factor `[r, d]` of the covariance: factor^T factor, in float64.

    The covariance itself is never formed: squaring would lose half the digits, and the square root
    of a product of two covariances, taken by a general sqrtm, goes complex where there are fewer
    pictures than features.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def fitted(cls, features: Tensor, weights: Tensor | None = None) -> "Gaussian":
        """To features `[n, d]`, unbiased; `weights` [n] say how often each counts."""
        features = features.double()
        weights = features.new_ones(len(features)) if weights is None else weights
        features, weights = features[weights > 0], weights[weights > 0]
        num = weights.sum()
        mean = weights @ features / num
        factor = (weights / (num - 1)).sqrt()[:, None] * (features - mean)
        if len(factor) > factor.shape[1]:
            factor = torch.linalg.qr(factor, mode="r").R
        return cls(mean, factor)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """d^2. The eigenvalues of S_1 S_2 are the squared singular values of F_1 F_2^T."""
    root_trace = torch.linalg.svdvals(one.factor @ other.factor.T).sum()
    between = (one.mean - other.mean).square().sum()
    spread = one.factor.square().sum() + other.factor.square().sum()
    return max(0.0, float(between + spread - 2 * root_trace))


def frechet_score(
    drawn: Tensor,
    real: Tensor,
    weights: tuple[Tensor, Tensor],
    advance: Callable[[int], object] = lambda _num: None,
) -> Score:
    """Of features `[n, d]` and `[m, d]`; `weights` [b, n] and [b, m] are their resamples, which
    take long: `advance` is told of each."""
    value = frechet_distance(Gaussian.fitted(drawn), Gaussian.fitted(real))
    resampled = []
    for w_drawn, w_real in zip(*(part.to(drawn.device) for part in weights), strict=True):
        one, other = Gaussian.fitted(drawn, w_drawn), Gaussian.fitted(real, w_real)
        resampled.append(frechet_distance(one, other))
        advance(1)
    return score_of(value, torch.tensor(resampled, dtype=torch.float64))
