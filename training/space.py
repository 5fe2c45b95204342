"""What a network draws in: pixels, pixels given a smaller picture, or an autoencoder's latents.

Shapes: B pictures of H x W pixels; x_0 is `[B, C, h, w]`, of about unit scale. A condition,
`[B, C_c, h, w]`, is what the network is given beside x_t, as further channels.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from infra.errors import ConfigError
from training.config import Config
from training.diffusion import Denoiser

IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class SpaceShape:
    channels: int
    """Of x_0."""
    condition_channels: int
    downscale: int
    """Pixels a side for one place of x_0."""


@dataclass(frozen=True)
class Draw:
    """Random numbers of some rows of a step's batch: drawn for all of it from (seed, step) alone,
    so that they don't depend on who draws."""

    generator: torch.Generator
    batch_size: int
    rows: slice

    def normal(self, *shape: int) -> Tensor:
        return self._rows(torch.randn, *shape)

    def uniform(self) -> Tensor:
        return self._rows(torch.rand)

    def _rows(self, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        device = self.generator.device
        return draw(self.batch_size, *shape, generator=self.generator, device=device)[self.rows]


class Space(Protocol):
    @property
    def shape(self) -> SpaceShape: ...

    @property
    def clips(self) -> bool:
        """Whether x_0 lies in [-1, 1], so that samplers may hold it there."""
        ...

    def targets(
        self, pixels: Tensor, draw: Draw, at_once: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Pictures, uint8 `[B, 3, H, W]`, as x_0 and condition to train on; a network among them
        is given `at_once` at most, None: all."""
        ...

    def pictures(self, x_0: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [-1, 1]."""
        ...


def make_space(config: Config, device: torch.device) -> Space:
    shape = space_shape(config)
    if config.space.upscale_from is not None:
        scale = config.image_size // config.space.upscale_from
        return UpscaleSpace(shape, scale, config.space.max_augmentation)
    if config.space.autoencoder is not None:
        return LatentSpace(shape, config.space.autoencoder, device)
    return PixelSpace(shape)


def space_shape(config: Config) -> SpaceShape:
    """Without loading an autoencoder's weights; raises ConfigError for settings at odds."""
    upscale_from, autoencoder = config.space.upscale_from, config.space.autoencoder
    if upscale_from is not None:
        if autoencoder is not None:
            raise ConfigError(
                "space.upscale_from and space.autoencoder are both given: expected one of them"
            )
        if config.image_size % upscale_from or config.image_size == upscale_from:
            raise ConfigError(
                f"space.upscale_from is {upscale_from}: expected a proper divisor of image_size, "
                f"{config.image_size}"
            )
        return SpaceShape(IMAGE_CHANNELS, IMAGE_CHANNELS + 1, 1)
    if autoencoder is not None:
        return _latent_shape(autoencoder, config.image_size)
    return SpaceShape(IMAGE_CHANNELS, 0, 1)


def autoencoder_digest(config: Config) -> str:
    """sha256 of what the latents come from: the autoencoder's settings, names and weights, whatever
    files they lie in; "" where there is none."""
    if config.space.autoencoder is None:
        return ""
    autoencoder = _load(config.space.autoencoder, "from_pretrained")
    settings = {name: value for name, value in autoencoder.config.items() if name[0] != "_"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weights in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
        digest.update(weights.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def conditioned(network: Denoiser, condition: Tensor | None) -> Denoiser:
    """The same Denoiser with the condition bound to it. Guidance sends x_t through it several
    times in one batch, one copy after the other."""
    if condition is None:
        return network

    def denoiser(x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        copies = condition.repeat(len(x_t) // len(condition), 1, 1, 1)
        return network(torch.cat([x_t, copies], 1), t, text_tokens, text_mask)

    return denoiser


@dataclass(frozen=True)
class PixelSpace:
    shape: SpaceShape
    clips: bool = True

    def targets(
        self, pixels: Tensor, draw: Draw, at_once: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        del draw, at_once  # nothing is drawn, and there is no network
        return unit_range(pixels), None

    def pictures(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(-1, 1)


@dataclass(frozen=True)
class UpscaleSpace:
    """The super-resolution stage of a cascade (Ho et al. 2021, "Cascaded Diffusion Models").

    The condition is the small picture, noised and then enlarged, and a channel that says how far
    it was noised: from 0 to 1 on the cosine schedule (Nichol & Dhariwal 2021, equation 17).
    """

    shape: SpaceShape
    scale: int
    """Pixels a side for one of the small picture."""
    max_augmentation: float
    clips: bool = True

    def targets(
        self, pixels: Tensor, draw: Draw, at_once: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        del at_once  # there is no network
        x_0 = unit_range(pixels)
        small = F.avg_pool2d(x_0, self.scale)
        levels = self.max_augmentation * draw.uniform()
        return x_0, self.condition(small, levels, draw.normal(*small.shape[1:]))

    def condition(self, small: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
        """`small` `[B, 3, h, w]` in [-1, 1], noised to `levels` `[B]` -> `[B, 4, H, W]`."""
        angles = levels.view(-1, 1, 1, 1) * (math.pi / 2)
        noised = angles.cos() * small + angles.sin() * noise
        large = F.interpolate(noised, scale_factor=self.scale, mode="bilinear")
        told = (2 * levels - 1).view(-1, 1, 1, 1).expand(-1, 1, *large.shape[2:])
        return torch.cat([large, told], 1)

    def pictures(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(-1, 1)


class LatentSpace:
    """The latents of a frozen autoencoder, shifted and scaled as its configuration says."""

    clips = False

    def __init__(self, shape: SpaceShape, name: str, device: torch.device) -> None:
        self.shape = shape
        self._autoencoder = _load(name, "from_pretrained").to(device).eval().requires_grad_(False)
        config = self._autoencoder.config
        self._scale: float = config.scaling_factor
        self._shift: float = getattr(config, "shift_factor", None) or 0.0

    @torch.no_grad()
    def targets(
        self, pixels: Tensor, draw: Draw, at_once: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        latents = [
            self._autoencoder.encode(unit_range(some)).latent_dist
            for some in torch.split(pixels, at_once or len(pixels))
        ]
        mean, std = (_joined([getattr(some, name) for some in latents]) for name in ("mean", "std"))
        sample = mean + std * draw.normal(*mean.shape[1:])
        return (sample - self._shift) * self._scale, None

    @torch.no_grad()
    def pictures(self, x_0: Tensor) -> Tensor:
        pictures: Tensor = self._autoencoder.decode(x_0 / self._scale + self._shift).sample
        return pictures.clamp(-1, 1)


def unit_range(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _latent_shape(name: str, image_size: int) -> SpaceShape:
    config = _load(name, "load_config")
    downscale = 2 ** (len(config["block_out_channels"]) - 1)
    if image_size % downscale:
        raise ConfigError(
            f"image_size is {image_size}: expected a multiple of {downscale}, pixels a side for "
            f"one latent of space.autoencoder {name!r}"
        )
    return SpaceShape(config["latent_channels"], 0, downscale)


def _load(name: str, method: str) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise ConfigError(
            f"space.autoencoder is {name!r}: this needs the package diffusers; "
            "pip install diffusers"
        ) from None
    try:
        return getattr(AutoencoderKL, method)(name)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"space.autoencoder is {name!r}: expected a folder, or a name on the Hugging Face hub, "
            f"of an autoencoder that diffusers' AutoencoderKL loads ({reason})"
        ) from error
