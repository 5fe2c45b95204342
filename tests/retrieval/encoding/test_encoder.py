import csv
import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from infra.errors import ConfigError, InputError
from retrieval.embedding.embeddings import DEFAULT_ENCODER, EMBEDDED_ENCODER
from retrieval.encoding.encoder import Encoder, Precision, choose_precision, load_encoder
from retrieval.encoding.pictures import decode_picture

EMOJI = Path(__file__).parents[3] / "examples" / "emoji"


@pytest.fixture(scope="module")
def encoder(tiny_encoder: str) -> Encoder:
    return load_encoder(tiny_encoder)


@pytest.fixture
def no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that never fetched a model and reaches no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def test_rows_are_unit_vectors_and_do_not_depend_on_their_neighbours(encoder: Encoder) -> None:
    images = [Image.new("RGB", (50, 40), color) for color in ("red", "green", "blue")]
    rows = encoder.encode_images(images)
    assert rows.shape == (3, encoder.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_images(images[1:2])[0], rows[1], atol=1e-5)


def test_rows_are_what_open_clip_itself_computes(encoder: Encoder, tiny_encoder: str) -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_encoder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_encoder}")
    image = Image.linear_gradient("L").convert("RGB").crop((10, 0, 250, 100))
    with torch.no_grad():
        image_features = model.eval().encode_image(preprocess(image)[None], normalize=True)
        text_features = model.encode_text(tokenizer(["a gradient"]), normalize=True)
    np.testing.assert_allclose(encoder.encode_images([image]), image_features, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(["a gradient"]), text_features, atol=1e-6)


def test_no_items_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode_images([]).shape == (0, encoder.dim)
    assert encoder.encode_texts([]).shape == (0, encoder.dim)


def test_transparent_and_gray_pictures_are_taken(encoder: Encoder) -> None:
    rows = encoder.encode_images([Image.new("RGBA", (9, 9)), Image.new("L", (9, 90))])
    assert np.isfinite(rows).all()


def test_token_embeddings_pool_to_the_text_embedding(encoder: Encoder) -> None:
    """The state at the last token, projected, is what the model calls the text's features."""
    texts = ["a cat!", "many words " * 20]
    states, is_token = encoder.token_embeddings(texts)
    assert states.shape == (2, encoder.context_length, encoder.token_width)
    assert states.dtype == torch.float32
    assert is_token.sum(dim=1).tolist() == [5, encoder.context_length]
    last = states[torch.arange(2), is_token.sum(dim=1) - 1]
    features = torch.nn.functional.normalize(last @ encoder._model.text_projection, dim=-1)
    np.testing.assert_allclose(features.detach(), encoder.encode_texts(texts), atol=1e-6)


def test_digest_is_the_weights_files_sha256(encoder: Encoder, tiny_encoder: str) -> None:
    data = (Path(tiny_encoder) / "open_clip_model.safetensors").read_bytes()
    assert encoder.weights_digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_full_precision(
    tiny_encoder: str, encoder: Encoder, precision: Precision
) -> None:
    half = load_encoder(tiny_encoder, precision=precision)
    cosine = half.encode_texts(["a red cat"]) @ encoder.encode_texts(["a red cat"]).T
    assert cosine.item() > 0.999


def test_bf16_of_the_shipped_encoder_stays_near_fp32() -> None:
    """Of emoji, which it was made for, the least similar; and of their captions."""
    with (EMOJI / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:64]
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        pictures = [decode_picture(archive.read(row["file_name"])) for row in rows]
    captions = [row["caption"] for row in rows]
    whole = load_encoder(EMBEDDED_ENCODER)
    half = load_encoder(EMBEDDED_ENCODER, precision="bf16")
    images = (whole.encode_images(pictures) * half.encode_images(pictures)).sum(axis=1)
    texts = (whole.encode_texts(captions) * half.encode_texts(captions)).sum(axis=1)
    assert images.min() > 0.998
    assert images.mean() > 0.9995
    assert texts.min() > 0.9995


def test_a_device_that_this_machine_lacks_is_not_blamed_on_the_weights(tiny_encoder: str) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ConfigError, match=f"--device '{device}'") as raised:
            load_encoder(tiny_encoder, device)
        assert "\n" not in str(raised.value)


def test_auto_precision_is_never_left_open(tiny_encoder: str) -> None:
    assert load_encoder(tiny_encoder, precision="auto").precision == choose_precision("cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-32/laion2b_s34b", "the nearest are ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-B32/laion2b_s34b_b79k", "the nearest are ViT-B-32/laion2b_s34b_b79k"),
        ("Carrara-S/emoji", "Carrara-S/emoji_clipart"),
        ("ViT-B-32/no/such/file.safetensors", "no weights file"),
        ("", "unknown"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        load_encoder(name)
    assert "\n" not in str(raised.value)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("no_hub_cache")
@pytest.mark.parametrize("name", [DEFAULT_ENCODER, "hf-hub:org/name"])
def test_weights_that_can_not_be_downloaded_are_an_error(name: str) -> None:
    with pytest.raises(InputError, match="can't be downloaded") as raised:
        load_encoder(name)
    assert "\n" not in str(raised.value)


def test_weights_of_another_model_are_an_error(tiny_encoder: str, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_encoder, folder)
    weights = folder / "open_clip_model.safetensors"
    tensors = load_file(weights)
    del tensors["text_projection"]
    save_file(tensors, weights)
    with pytest.raises(InputError, match="can't be used"):
        load_encoder(str(folder))


def test_a_pickle_that_runs_code_is_refused(tiny_encoder: str, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_encoder, folder)
    (folder / "open_clip_model.safetensors").unlink()
    # What runs on loading would leave this file behind.
    mark = tmp_path / "ran"
    torch.save({"text_projection": _TouchesOnLoad(mark)}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="can't be used"):
        load_encoder(str(folder))
    assert not mark.exists()


class _TouchesOnLoad:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._path,)
