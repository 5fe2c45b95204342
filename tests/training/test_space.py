import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.errors import ConfigError, ConflictError
from training.config import Config, UNetConfig
from training.network import make_network
from training.space import (
    Draw,
    LatentSpace,
    UpscaleSpace,
    autoencoder_digest,
    conditioned,
    make_space,
)

CPU = torch.device("cpu")
PIXELS = torch.randint(
    0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)

UNET = UNetConfig(
    channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(), num_heads=2
)


def make_config(**space: Any) -> Config:
    return Config(root="corpus", run="run", image_size=32, space=space)


def draw(rows: slice = slice(0, 4)) -> Draw:
    return Draw(torch.Generator().manual_seed(0), 4, rows)


def test_pixels_are_their_own_space() -> None:
    space = make_space(make_config(), CPU)
    x_0, condition = space.targets(PIXELS, draw())
    assert condition is None
    assert x_0.min() == -1
    assert x_0.max() == 1
    torch.testing.assert_close((space.pictures(x_0) + 1) * 127.5, PIXELS.float())


# Super-resolution


def upscale_space(**space: Any) -> UpscaleSpace:
    made = make_space(make_config(upscale_from=8, **space), CPU)
    assert isinstance(made, UpscaleSpace)
    return made


def test_condition_is_the_small_picture_enlarged_and_its_level() -> None:
    space = upscale_space(max_augmentation=0.0)
    x_0, condition = space.targets(PIXELS, draw())
    assert condition is not None
    assert condition.shape == (4, 4, 32, 32)
    small = x_0.view(4, 3, 8, 4, 8, 4).mean((3, 5))
    enlarged = torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(condition[:, :3], enlarged)
    assert (condition[:, 3] == -1).all()


def test_small_pictures_are_noised_to_the_level_that_is_told() -> None:
    pixels = torch.full((2000, 3, 32, 32), 255, dtype=torch.uint8)
    drawn = Draw(torch.Generator().manual_seed(0), 2000, slice(0, 2000))
    space = upscale_space(max_augmentation=0.8)
    _, condition = space.targets(pixels, drawn)
    assert condition is not None
    levels = (condition[:, 3, 0, 0] + 1) / 2
    assert 0 <= levels.min() < 0.02
    assert 0.78 < levels.max() <= 0.8
    # A corner of a bilinear enlargement is the small picture's own corner.
    signal = (levels * torch.pi / 2).cos()
    noise = (condition[:, 0, 0, 0] - signal) / (levels * torch.pi / 2).sin()
    assert noise[levels > 0.1].mean().abs() < 0.1
    assert noise[levels > 0.1].std() == pytest.approx(1, abs=0.1)


def test_what_is_drawn_for_a_row_does_not_depend_on_who_draws() -> None:
    space = upscale_space()
    _, whole = space.targets(PIXELS, draw())
    _, part = space.targets(PIXELS[1:3], draw(slice(1, 3)))
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[1:3])


def test_guidance_gives_every_copy_its_condition() -> None:
    condition = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4)

    def network(x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        assert t is text_tokens is text_mask
        return x_t[:, 3:]

    nothing = torch.zeros(4)
    seen = conditioned(network, condition)(torch.zeros(4, 3, 4, 4), nothing, nothing, nothing)
    assert seen[:, 0, 0, 0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upscale_from": 32}, "space.upscale_from is 32: expected a proper divisor of image_size"),
        ({"upscale_from": 12}, "space.upscale_from is 12: expected a proper divisor of image_size"),
        ({"upscale_from": 8, "autoencoder": "x"}, "expected one of them"),
        ({"autoencoder": "no/such-folder/here"}, "space.autoencoder is 'no/such-folder/here': exp"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_space(make_config(**settings), CPU)


# Latents


def autoencoder_class() -> Any:
    """Its methods have no types."""
    from diffusers import AutoencoderKL

    return AutoencoderKL


def test_latents_are_the_autoencoders_shifted_and_scaled(tiny_autoencoder: str) -> None:
    space = make_space(make_config(autoencoder=tiny_autoencoder), CPU)
    x_0, condition = space.targets(PIXELS, draw())
    assert condition is None
    assert x_0.shape == (4, 2, 8, 8)
    assert not space.clips
    theirs = autoencoder_class().from_pretrained(tiny_autoencoder)
    with torch.no_grad():
        latents = theirs.encode(PIXELS.float() / 127.5 - 1).latent_dist
        sample = latents.mean + latents.std * draw().normal(2, 8, 8)
        torch.testing.assert_close(x_0, 0.5 * (sample - 0.25))
        torch.testing.assert_close(space.pictures(x_0), theirs.decode(sample).sample.clamp(-1, 1))


def test_an_autoencoder_is_given_no_more_at_once_than_asked(tiny_autoencoder: str) -> None:
    space = make_space(make_config(autoencoder=tiny_autoencoder), CPU)
    assert isinstance(space, LatentSpace)
    sizes: list[int] = []
    space._autoencoder.encoder.register_forward_pre_hook(
        lambda _module, inputs: sizes.append(len(inputs[0]))
    )
    whole, _ = space.targets(PIXELS, draw())
    parts, _ = space.targets(PIXELS, draw(), 3)
    assert sizes == [4, 3, 1]
    torch.testing.assert_close(parts, whole)


def test_latents_that_do_not_fit_the_picture_are_named(tiny_autoencoder: str) -> None:
    config = make_config(autoencoder=tiny_autoencoder).model_copy(update={"image_size": 30})
    with pytest.raises(ConfigError, match=r"image_size is 30: expected a multiple of 4.*autoenc"):
        make_network(config, 12)


def test_an_autoencoder_is_known_by_its_weights_and_settings(
    tiny_autoencoder: str, tmp_path: Path
) -> None:
    digest = autoencoder_digest(make_config(autoencoder=tiny_autoencoder))
    assert autoencoder_digest(make_config()) == ""
    made = autoencoder_class().from_pretrained(tiny_autoencoder)
    made.save_pretrained(tmp_path / "copy", safe_serialization=False)
    assert autoencoder_digest(make_config(autoencoder=str(tmp_path / "copy"))) == digest
    made.register_to_config(scaling_factor=0.25)
    made.save_pretrained(tmp_path / "scaled")
    assert autoencoder_digest(make_config(autoencoder=str(tmp_path / "scaled"))) != digest


def test_a_run_goes_on_with_its_own_autoencoder_alone(
    tiny_config: Callable[..., Config], tiny_autoencoder: str, tmp_path: Path
) -> None:
    from training.record import read_record
    from training.train import run

    folder = tmp_path / "autoencoder"
    shutil.copytree(tiny_autoencoder, folder)
    config = tiny_config(unet=UNET, space={"autoencoder": str(folder)}, num_steps=2)
    run(config)
    digest = autoencoder_digest(config)
    assert read_record(config.run).autoencoder_digest == digest

    made = autoencoder_class().from_pretrained(tiny_autoencoder)
    with torch.no_grad():
        made.encoder.conv_in.bias += 0.5
    made.save_pretrained(folder)
    with pytest.raises(ConflictError, match=f"weights of autoencoder.*{digest[:16]} there"):
        run(config)


# From training to drawing


@pytest.mark.parametrize("kind", ["upscale", "latent"])
def test_a_run_in_that_space_trains_and_draws(
    kind: str, tiny_config: Callable[..., Config], tiny_autoencoder: str
) -> None:
    from training.model import load_model
    from training.train import run

    space = {"upscale_from": 4} if kind == "upscale" else {"autoencoder": tiny_autoencoder}
    config = tiny_config(unet=UNET, space=space, num_steps=4)
    run(config)
    model = load_model(config.run)
    small = torch.zeros(2, 3, 4, 4) if kind == "upscale" else None
    pictures = model.draw(
        ["red heart", "cat"], num_steps=2, sampler="ddim", guidance_scale=2.0, seed=0,
        batch_size=2, small=small, augmentation=0.1,
    )  # fmt: skip
    assert pictures.shape == (2, 3, 16, 16)
    assert pictures.abs().max() <= 1
