"""What a model's settings do to its pictures. (Noise and batches: tests/training/drawing.)"""

import io
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch import Tensor

from training.drawing.request import Request, draw
from training.drawing.settings import SamplerName
from training.model import TrainedModel, load_model
from training.samplers import SAMPLERS

CAPTIONS = ["red heart", "a cat"]


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def model(trained_run: str, request: pytest.FixtureRequest) -> TrainedModel:
    return load_model(trained_run, device=request.param)


def pictures(model: TrainedModel, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {
        "run": "",
        "weights": "",
        "checkpoint": 12,
        "sampler": "ddim",
        "num_steps": 4,
    }
    settings |= {"guidance_scale": 3.0, "negative": "", "rescale": 0.0, "seed": 0}
    settings |= {"batch_size": 8, "device": "cpu"}
    return draw(model, Request(**(settings | changes)), CAPTIONS)


def file_of(colour: str, half: str | None = None) -> bytes:
    """A picture's file; `half` is the colour of its right half."""
    image = Image.new("RGB", (16, 16), colour)
    if half is not None:
        image.paste(half, (8, 0, 16, 16))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_every_sampler_can_be_named_and_draws(model: TrainedModel) -> None:
    assert set(get_args(SamplerName)) == SAMPLERS.keys()
    for name in SAMPLERS:
        drawn = pictures(model, sampler=name)
        assert drawn.shape == (2, 3, 16, 16)
        assert drawn.isfinite().all()
        assert drawn.abs().max() <= 1


def test_a_negative_caption_equal_to_the_caption_leaves_nothing_to_guide(
    model: TrainedModel,
) -> None:
    plain = pictures(model, guidance_scale=1.0)
    for scale in (3.0, 7.0):
        against = pictures(model, guidance_scale=scale, negative="red heart")
        assert torch.allclose(against[0], plain[0], atol=1e-4)
        assert not torch.allclose(against[1], plain[1], atol=1e-4)


def test_rescaling_changes_guided_pictures_alone(model: TrainedModel) -> None:
    assert not torch.equal(pictures(model), pictures(model, rescale=0.7))
    plain = [pictures(model, guidance_scale=1.0, rescale=rescale) for rescale in (0.0, 0.7)]
    assert torch.equal(*plain)


@pytest.mark.parametrize("num_resamples", [0, 2])
def test_outside_the_mask_the_picture_stays_as_it_is(
    model: TrainedModel, num_resamples: int
) -> None:
    blue = torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1)
    drawn = pictures(
        model,
        init_image=file_of("blue"),
        mask=file_of("black", "white"),
        num_resamples=num_resamples,
    )
    assert torch.allclose(drawn[..., :8], blue.expand(3, 16, 8), atol=1e-5)
    assert not torch.allclose(drawn[..., 8:], blue.expand(3, 16, 8), atol=0.1)


def test_the_smaller_the_strength_the_nearer_to_the_picture_begun_from(
    model: TrainedModel,
) -> None:
    grey = torch.full((2, 3, 16, 16), 128 / 127.5 - 1)
    apart = [
        (pictures(model, init_image=file_of("gray"), strength=s, num_steps=20) - grey).abs().mean()
        for s in (0.05, 0.5, 1.0)
    ]
    assert apart[0] < apart[1] < apart[2]
    assert torch.equal(pictures(model, init_image=file_of("gray"), strength=1.0), pictures(model))


def test_a_picture_in_another_shape_is_cut_to_its_middle(
    model: TrainedModel, tmp_path: Path
) -> None:
    wide = Image.new("RGB", (48, 16), "red")
    wide.paste("blue", (16, 0, 32, 16))
    wide.save(tmp_path / "wide.png")
    cut = pictures(model, init_image=(tmp_path / "wide.png").read_bytes(), strength=0.3)
    assert torch.equal(cut, pictures(model, init_image=file_of("blue"), strength=0.3))
