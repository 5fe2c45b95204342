"""The text tower of an open_clip model, as a folder that open_clip loads."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from infra.errors import InputError
from retrieval.encoding.weights import CONFIG_NAME, HUB_NAMES, Weights, find_weights

STUB_TOWER = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64, "head_width": 64}
"""In place of the image tower, without which open_clip builds no model: it is never run."""
VISUAL = "visual."


def write_text_tower(encoder: str, folder: Path) -> None:
    """open_clip_config.json and the weights; raises InputError where they can't be had."""
    source = find_weights(encoder)
    config = _model_config(source) | {"vision_cfg": STUB_TOWER}
    if source.quick_gelu:
        config["quick_gelu"] = True
    model = open_clip.create_model(
        source.model,
        pretrained=None if source.in_folder else str(source.path),
        force_quick_gelu=source.quick_gelu,
        weights_only=True,
        require_pretrained=True,
    )
    weights = {
        name: weight.contiguous()
        for name, weight in model.state_dict().items()
        if not name.startswith(VISUAL)
    }
    folder.mkdir(parents=True)
    settings = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(weights | _stub(config), folder / HUB_NAMES[0])


def _stub(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = open_clip.model._build_vision_tower(
            config["embed_dim"], STUB_TOWER, bool(config.get("quick_gelu"))
        )
    return {f"{VISUAL}{name}": weight.contiguous() for name, weight in tower.state_dict().items()}


def _model_config(source: Weights) -> dict[str, Any]:
    if source.in_folder:
        path = Path(source.model.removeprefix("local-dir:")) / CONFIG_NAME
        if not path.is_file():  # on the hub: beside the weights in its cache
            path = source.path.parent / CONFIG_NAME
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        return config
    found = open_clip.get_model_config(source.model)
    if found is None:
        raise InputError(f"encoder: {source.model} is no configuration of open_clip's")
    return dict(found)
