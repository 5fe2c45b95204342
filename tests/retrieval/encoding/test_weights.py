import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest

from retrieval.encoding.encoder import load_encoder


def test_a_model_s_name_and_a_file_of_its_weights_are_an_encoder(
    tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `--encoder ViT-B-32/path/to/weights`, with a model smaller than any of open_clip's."""
    folder = tmp_path / "folder"
    shutil.copytree(tiny_encoder, folder)
    settings = folder / "open_clip_config.json"
    model = json.loads(settings.read_text())["model_cfg"]
    # Of a model known by its name, too, the preprocessing is open_clip's own.
    settings.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    architecture = tmp_path / "Tiny-32.json"
    architecture.write_text(json.dumps(model))
    for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):  # as they are, when this is over
        monkeypatch.setattr(open_clip.factory, name, getattr(open_clip.factory, name).copy())
    open_clip.add_model_config(architecture)

    by_file = load_encoder(f"Tiny-32/{folder / 'open_clip_model.safetensors'}")
    by_folder = load_encoder(str(folder))
    texts = ["a red cat", "many words " * 20]
    np.testing.assert_array_equal(by_file.encode_texts(texts), by_folder.encode_texts(texts))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(by_file.encode_pixels(pixels), by_folder.encode_pixels(pixels))
    assert by_file.weights_digest == by_folder.weights_digest
