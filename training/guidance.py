"""Classifier-free guidance: how far the caption pulls, and away from what."""

import torch
from torch import Tensor

from training.diffusion import Denoiser, Network


def guided(
    denoiser: Denoiser,
    text_tokens: Tensor,
    text_mask: Tensor,
    guidance_scale: float,
    *,
    negative: tuple[Tensor, Tensor] | None = None,
    rescale: float = 0.0,
) -> Network:
    """Classifier-free guidance (Ho & Salimans 2022): u + w (c - u), of what the network puts out.

    w = 1 is the conditional prediction c, w = 0 the unconditional one u. (The paper's w is this
    one minus 1.) Both halves go through the network as one batch. u is what a mask of False
    gives or, with `negative` (tokens and mask, as long as the others), what that text gives: the
    pictures move away from it. `rescale` is the share by which the contrast that guidance adds is
    taken back again (Lin et al. 2024, section 3.4; they advise 0.7): at 1 a picture's standard
    deviation is that of c.
    """
    others = (text_tokens, torch.zeros_like(text_mask)) if negative is None else negative
    tokens = torch.cat([text_tokens, others[0]])
    mask = torch.cat([text_mask, others[1]])

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        if guidance_scale == 1:
            return denoiser(x_t, t, text_tokens, text_mask)
        both = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), tokens, mask)
        conditional, unconditional = both.float().chunk(2)
        # lerp is exact at both ends, where u + w (c - u) rounds
        output = torch.lerp(unconditional, conditional, guidance_scale)
        if rescale > 0:
            ratio = _std(conditional) / _std(output)
            output = output * torch.lerp(torch.ones_like(ratio), ratio, rescale)
        return output

    return network


def _std(pictures: Tensor) -> Tensor:
    """Of each, over all its pixels and channels, `[B, 1, 1, 1]`."""
    return pictures.flatten(1).std(1).view(-1, 1, 1, 1)
