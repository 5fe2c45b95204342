"""What an exported model says of itself and of what it was trained on."""

from typing import Any

from infra.errors import CarraraError
from pipeline.corpus import SUCCESS, read_manifest
from training.config import Config
from training.log import read_metrics
from training.record import RunRecord
from training.watching.looks import read_held_out

SCHEMA_VERSION = 1


def data_manifest(record: RunRecord) -> dict[str, Any]:
    """The corpus by its digests: enough to tell whether a picture could have been among the data,
    and to check that a corpus at hand is the same; no addresses and no captions."""
    config = record.config
    told: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "corpus_digest": record.corpus_digest,
        "selection": config.selection,
        "held_out": config.held_out,
        "encoder": config.encoder,
        "encoder_digest": record.encoder_digest,
        "config_digest": record.config_digest,
    }
    try:
        manifest = read_manifest(config.root)
    except CarraraError as error:
        return told | {"shards": None, "note": f"the corpus could not be read: {error}"}
    if manifest.digest != record.corpus_digest:
        told["note"] = f"the corpus has changed since: its digest is {manifest.digest} now"
    shards = [
        {"name": shard.name, "samples": shard.num_samples, "sha256": shard.sha256}
        for shard in manifest.shards
    ]
    return told | {"counts": manifest.counts, "shards": shards}


def model_card(record: RunRecord, step: int, kind: str, data: dict[str, Any]) -> str:
    config = record.config
    rows = [
        ("checkpoint", f"step {step:,} of {config.num_steps:,}, {_kind(kind)}"),
        ("network", f"`{config.network}`, {config.image_size} x {config.image_size} pixels"),
        ("text", _text(config)),
        ("noise", f"{config.schedule}, T = {config.num_timesteps}, predicts {config.prediction}"),
        ("batch", f"{config.batch_size} pictures a step"),
        ("corpus", _corpus(config, data)),
        *_losses(config, step),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    needs = "diffusers torch" + ("" if config.text.trained else " open_clip_torch")
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
tags:
- carrara
- ddpm
---

# A text-to-image diffusion model, trained with Carrara

| | |
| --- | --- |
{table}

## Use

    pip install {needs}

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder", trust_remote_code=True)
pipeline("a cat in the snow").images[0]
```

The code in this folder (`pipeline.py`, `network/*.py`, `text_encoder/*.py`) is run: read it first.
With `sampler="ddpm"` or another of Carrara's the pictures are those of `carrara sample` with the
same seed, steps and guidance; without, the scheduler of diffusers draws, and any other of its
schedulers can take its place.

## Data

`data.json` names the corpus by the sha256 of each of its shards, without addresses or captions. The
model knows what those pictures and captions show, in the way that they show it, with their biases;
it may draw pictures of theirs by heart. Nothing has been done to keep it from drawing what should
not be drawn.
"""


def _kind(kind: str) -> str:
    return {"ema": "averaged weights", "model": "the weights themselves"}[kind]


def _text(config: Config) -> str:
    if config.text.trained:
        return f"a transformer trained along, {config.text.num_layers} layers"
    return f"frozen tower of `{config.encoder}`"


def _corpus(config: Config, data: dict[str, Any]) -> str:
    parts = [f"digest `{data['corpus_digest']}`"]
    if data.get("counts"):
        parts.append(f"{data['counts'][SUCCESS]:,} samples")
    if config.selection:
        parts.append(f"those that selection `{config.selection}` keeps")
    if config.held_out:
        parts.append(f"{config.held_out:.1%} held out")
    return ", ".join(parts)


def _losses(config: Config, step: int) -> list[tuple[str, str]]:
    """As they were logged last, up to that step; none of a run whose logs are gone."""
    rows = []
    if lines := [line for line in read_metrics(config.run) if line["step"] <= step]:
        rows.append(("training loss", f"{lines[-1]['loss']:.4f}"))
    if looks := [line for line in read_held_out(config.run) if line["step"] <= step]:
        last = looks[-1]
        rows.append(("held-out loss", f"{last['loss']:.4f} at step {last['step']:,}"))
    return rows
