import pytest
import torch
from torch import Tensor

from infra.errors import ConfigError
from training.config import UNetConfig
from training.unet import UNet

TINY = UNetConfig(
    channels=16, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(8,), num_heads=2
)


def inputs(num: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False, False]]).repeat(num, 1)
    return (
        torch.randn(num, 3, 16, 16, generator=generator),
        torch.arange(num) * 100,
        torch.randn(num, 4, 12, generator=generator),
        mask,
    )


def trained(config: UNetConfig = TINY) -> UNet:
    """A network whose zeroed layers have moved, as after some training."""
    torch.manual_seed(0)
    unet = UNet(config, image_size=16, text_width=12).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return unet


def test_new_network_predicts_zero_noise() -> None:
    x_t, t, tokens, mask = inputs()
    unet = UNet(TINY, image_size=16, text_width=12)
    assert torch.equal(unet(x_t, t, tokens, mask), torch.zeros_like(x_t))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_output_depends_on_picture_time_and_text(patch_size: int) -> None:
    unet = trained(TINY.model_copy(update={"patch_size": patch_size}))
    x_t, t, tokens, mask = inputs()
    eps = unet(x_t, t, tokens, mask)
    assert eps.shape == x_t.shape
    for changed in (
        unet(x_t + 0.1, t, tokens, mask),
        unet(x_t, t + 50, tokens, mask),
        unet(x_t, t, tokens + 1 * torch.randn_like(tokens), mask),
    ):
        assert (changed - eps).abs().max() > 1e-3


def test_masked_tokens_are_not_seen() -> None:
    unet = trained()
    x_t, t, tokens, mask = inputs()
    eps = unet(x_t, t, tokens, mask)
    changed = torch.where(mask[..., None], tokens, 99.0)
    torch.testing.assert_close(unet(x_t, t, changed, mask), eps)
    torch.testing.assert_close(unet(x_t, t, tokens[:, :2], mask[:, :2]), eps)


def test_without_text_the_null_token_remains() -> None:
    unet = trained()
    x_t, t, tokens, mask = inputs()
    none = torch.zeros_like(mask)
    eps = unet(x_t, t, tokens, none)
    assert eps.isfinite().all()
    torch.testing.assert_close(unet(x_t, t, -tokens, none), eps)
    torch.testing.assert_close(unet(x_t, t, tokens[:, :0], none[:, :0]), eps)


def test_rows_of_a_batch_do_not_meet() -> None:
    unet = trained()
    x_t, t, tokens, mask = inputs()
    alone = unet(x_t[1:2], t[1:2], tokens[1:2], mask[1:2])
    torch.testing.assert_close(unet(x_t, t, tokens, mask)[1:2], alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_is_reached_by_the_gradient() -> None:
    unet = trained()
    unet(*inputs()).square().sum().backward()
    unreached = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_paper_network_has_the_papers_size() -> None:
    # Ho et al. 2020 state 35.7M for CIFAR-10; text attention and modulation come on top.
    unet = UNet(UNetConfig(), image_size=32, text_width=512)
    assert 36e6 < unet.num_parameters < 50e6


def test_picture_size_that_does_not_halve_is_named() -> None:
    with pytest.raises(ConfigError, match="image_size is 15: expected a multiple of 2"):
        UNet(TINY, image_size=15, text_width=12)
    with pytest.raises(ConfigError, match=r"unet.num_heads is 3"):
        UNet(TINY.model_copy(update={"num_heads": 3}), image_size=16, text_width=12)
