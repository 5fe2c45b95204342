"""The denoiser that a configuration asks for, what it costs, and how it is made fast.

A network is a `Backbone`: `(x_t, t, text_tokens, text_mask) -> eps, v or x_0`. Where the space has
a condition (training/space.py), it comes in as further channels of x_t.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from training.config import Config
from training.layers import Attention, Backbone
from training.space import space_shape
from training.text_transformer import ReadingNetwork, TextTransformer
from training.unet import UNet
from training.uvit import UViT


def make_network(config: Config, text_width: int) -> Backbone:
    """With random weights from torch's global generator, in channels-last; `text_width` is that
    of the frozen tower's embeddings, if that reads the captions."""
    shape = space_shape(config)
    side = config.image_size // shape.downscale
    if config.text.trained:
        text_width = config.text.width
    channels = (shape.channels + shape.condition_channels, shape.channels)
    network: Backbone
    if config.network == "unet":
        network = UNet(config.unet, side, text_width, *channels)
    else:
        network = UViT(config.uvit, side, text_width, *channels)
    network.checkpoint_activations = config.checkpoint_activations
    if config.text.trained:
        network = ReadingNetwork(TextTransformer(config.text), network)
    return network.to(memory_format=torch.channels_last)


def compiled(network: Backbone, config: Config, device: torch.device) -> nn.Module:
    """The same network and weights, by torch.compile where the settings ask for it."""
    if config.compile == "yes" or (config.compile == "auto" and device.type == "cuda"):
        return cast(nn.Module, torch.compile(network))
    return network


@dataclass(frozen=True)
class Flops:
    """Floating-point operations an image; a multiplication and an addition are two."""

    forward: int
    training: int
    """Forward and backward: three times the former (Chowdhery et al. 2022, "PaLM", appendix B).
    What activation checkpointing computes twice counts once."""


def flops_per_image(config: Config, text_width: int = 512, num_text_tokens: int = 32) -> Flops:
    """Of convolutions, linear layers and attention, for captions of so many tokens. The frozen
    text tower's, and an autoencoder's, are not among them."""
    with torch.device("meta"):
        network = make_network(config, text_width)
        shape = space_shape(config)
        side = config.image_size // shape.downscale
        x_t = torch.empty(1, shape.channels + shape.condition_channels, side, side)
        tokens = torch.empty(1, num_text_tokens, text_width)
        if config.text.trained:
            tokens = torch.empty(1, num_text_tokens, dtype=torch.int64)
        mask = torch.ones(1, num_text_tokens, dtype=torch.bool)
        forward = _forward_flops(network, x_t, torch.zeros(1), tokens, mask)
    return Flops(forward, 3 * forward)


def _forward_flops(network: nn.Module, *inputs: Tensor) -> int:
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            counts.append(2 * output.numel() * module.in_features)
        elif isinstance(module, nn.Conv2d):
            counts.append(2 * output.numel() * module.weight[0].numel())
        elif isinstance(module, Attention):  # q k^T, and its product with v
            counts.append(4 * output.numel() * inputs[1].shape[1])

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network(*inputs)
    return sum(counts)
