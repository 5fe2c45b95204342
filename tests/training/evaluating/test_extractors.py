import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infra.errors import ConfigError, InputError
from retrieval.encoding.encoder import load_encoder
from training.evaluating import extractors
from training.evaluating.extractors import (
    Inception,
    distance_name,
    extractor_digest,
    kid_gamma,
    load_extractor,
)


@pytest.fixture(scope="module")
def untrained_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of FID with random weights, in a file as torch-fidelity's own is."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        network = FeatureExtractorInceptionV3(
            "random", ["2048"], feature_extractor_weights_path="none"
        )
    torch.save(network.state_dict(), path)
    return path


def test_an_encoder_is_an_extractor_of_its_unit_rows(tiny_text_encoder: str) -> None:
    extractor = load_extractor(tiny_text_encoder, "cpu")
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    encoder = load_encoder(tiny_text_encoder)
    assert np.array_equal(extractor.images(pictures), encoder.encode_images(pictures))
    texts = extractor.texts(["a cat"])
    assert texts is not None
    assert np.linalg.norm(texts, axis=1) == pytest.approx(1)
    weights = Path(tiny_text_encoder) / "open_clip_model.safetensors"
    assert extractor_digest(tiny_text_encoder) == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_only_over_inceptions_features_is_the_distance_called_fid(tiny_text_encoder: str) -> None:
    assert distance_name("inception") == distance_name("inception/some/file.pth") == "FID"
    assert distance_name(tiny_text_encoder) == "Frechet distance"
    assert kid_gamma("inception") == 1 / 2048


def test_inceptions_weights_are_asked_for_by_their_place_and_no_others_are_taken(
    untrained_inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=rf"no weights at {tmp_path}/checkpoints/\S+; fetch http"):
        load_extractor("inception")
    with pytest.raises(ConfigError, match="no weights at /nowhere"):
        extractor_digest("inception//nowhere")
    with pytest.raises(ConfigError, match="holds other weights than FID's"):
        load_extractor(f"inception/{untrained_inception}")
    with pytest.raises(InputError, match="'inceptionv3/x'"):
        load_extractor("inceptionv3/x")


def test_inceptions_features_are_its_last_pooling(
    untrained_inception: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(untrained_inception.read_bytes()).hexdigest()
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", digest[:8])
    extractor = load_extractor(f"inception/{untrained_inception}", "cpu")
    assert isinstance(extractor, Inception)
    rows = extractor.images([Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")])
    assert rows.shape == (2, 2048)
    assert not np.array_equal(rows[0], rows[1])
    assert extractor.texts(["a cat"]) is None
