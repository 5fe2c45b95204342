"""The folder that diffusers loads: weights, settings, scheduler, text tower, code, card."""

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from infra import storage
from infra.progress import track
from training.config import Config
from training.exporting.card import data_manifest, model_card
from training.exporting.code import drawing_code, source_of
from training.exporting.text import write_text_tower
from training.record import RunRecord

DIFFUSERS_VERSION = "0.42.1"
"""That the folder was tried with."""
WEIGHTS = "network/diffusion_pytorch_model.safetensors"
CONFIG = "network/config.json"
INDEX = "model_index.json"
BACKBONE = "backbone."
"""Before the names of parameters: the network is a part of what diffusers loads."""
MB = 1_000_000

NOT_OF_THE_MODEL = {
    *("root", "run", "mix", "watch", "workers", "parallel", "loading", "data", "selection"),
    *("init_from", "overwrite", "max_failures", "checkpoint_patience_s", "cache_size_mb"),
}
"""Settings that drawing has no use for, some of which name places."""


def publish_folder(
    out: str, record: RunRecord, step: int, weights: dict[str, Tensor], kind: str
) -> None:
    """`weights` by parameter name; `kind` says which they are."""
    with tempfile.TemporaryDirectory(prefix="carrara-") as temporary:
        folder = Path(temporary)
        _write(folder, record, step, weights, kind)
        _publish(folder, out)


def _write(
    folder: Path, record: RunRecord, step: int, weights: dict[str, Tensor], kind: str
) -> None:
    config = record.config
    network = folder / "network"
    network.mkdir()
    for name, text in drawing_code().items():
        (network / name).write_text(text, encoding="utf-8")
    named = {f"{BACKBONE}{name}": weight.contiguous() for name, weight in weights.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    components: dict[str, list[str]] = {
        "network": ["modeling", "CarraraDenoiser"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    text_width = config.text.width
    if not config.text.trained:
        write_text_tower(config.encoder, folder / "text_encoder")
        tower = source_of("training.exporting.text_tower")
        (folder / "text_encoder" / "text_tower.py").write_text(tower, encoding="utf-8")
        components["text_encoder"] = ["text_tower", "CarraraTextTower"]
        text_width = _text_width(folder / "text_encoder")
    settings = {"settings": exported_settings(config), "text_width": text_width, "step": step}
    _write_json(folder / CONFIG, {"_class_name": "CarraraDenoiser"} | settings)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(config))
    pipeline = source_of("training.exporting.pipeline")
    (folder / "pipeline.py").write_text(pipeline, encoding="utf-8")
    data = data_manifest(record)
    _write_json(folder / "data.json", data)
    (folder / "README.md").write_text(model_card(record, step, kind, data), encoding="utf-8")
    _write_json(folder / INDEX, {"_class_name": ["pipeline", "CarraraPipeline"]} | components)


def _publish(folder: Path, out: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == INDEX)  # that one last
    num_bytes = sum(path.stat().st_size for path in files)
    with track("export", num_bytes // MB, "MB") as bar:
        num_sent = 0

        def on_bytes(num: int) -> None:
            nonlocal num_sent
            before, num_sent = num_sent, num_sent + num
            bar.advance(num_sent // MB - before // MB)

        for path in files:
            url = storage.join(out, *path.relative_to(folder).parts)
            storage.publish_file(url, path, on_bytes)


def exported_settings(config: Config) -> dict[str, Any]:
    """All that the code that draws may look at."""
    return config.model_dump(mode="json", exclude=NOT_OF_THE_MODEL & set(Config.model_fields))


def scheduler_config(config: Config) -> dict[str, Any]:
    """Of diffusers' DDPMScheduler, from which its other schedulers are made too."""
    scale = 1000 / config.num_timesteps  # as training.schedule.linear
    schedules: dict[str, dict[str, Any]] = {
        "linear": {
            "beta_schedule": "linear",
            "beta_start": 1e-4 * scale,
            "beta_end": 0.02 * scale,
        },
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    }
    prediction = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}[config.prediction]
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": config.num_timesteps,
        **schedules[config.schedule],
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "prediction_type": prediction,
        "variance_type": "fixed_small",
        "clip_sample": config.space.autoencoder is None,
        "timestep_spacing": "linspace",
    }


def _text_width(folder: Path) -> int:
    """Of the tower's token embeddings."""
    from retrieval.encoding.encoder import load_encoder

    return load_encoder(str(folder)).token_width


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
