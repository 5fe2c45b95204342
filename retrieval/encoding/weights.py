"""From an encoder's name to its weights: shipped here, in a folder, in a file, on the hub.

Reads   a folder with open_clip_config.json, a weights file, the hub's cache; else downloads into it

open_clip, which takes seconds to import, is asked only about names that are its own.
"""

import difflib
import hashlib
import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from infra.errors import InputError
from retrieval.embedding.embeddings import EMBEDDED_ENCODER

_SHIPPED = Path(__file__).parents[1] / "models"
EMBEDDED_FOLDERS = {EMBEDDED_ENCODER: _SHIPPED / "Carrara-S"}
EMBEDDED_TOWERS = {"Carrara-S-multilingual/emoji_names": _SHIPPED / "Carrara-S-multilingual"}
"""Text towers only; see retrieval.encoding.towers."""
CONFIG_NAME = "open_clip_config.json"
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_NAMES = (HUB_NAMES[0], "open_clip_pytorch_model.safetensors", HUB_NAMES[1])
"""In the order that open_clip prefers; what is not safetensors is read as tensors only."""
HUB_PREFIX = "hf-hub:"
PROBE_TIMEOUT_S = 5.0
"""The hub's client tries for 46 s where there is no network; so much patience is for downloads."""


@dataclass(frozen=True)
class Weights:
    """What open_clip has to be told to build an encoder."""

    model: str
    """As open_clip takes it: the name of a configuration, or "local-dir:FOLDER"."""
    path: Path
    in_folder: bool
    """The weights lie beside their configuration, where open_clip finds them."""
    quick_gelu: bool = False
    preprocessing: dict[str, Any] | None = None


def find_weights(name: str) -> Weights:
    """See `retrieval.encoding.encoder.load_encoder` for the names; raises InputError."""
    if name in EMBEDDED_FOLDERS:
        return _in_folder(name, EMBEDDED_FOLDERS[name])
    if name.startswith(HUB_PREFIX):
        return _on_hub(name)
    if (Path(name) / CONFIG_NAME).is_file():
        return _in_folder(name, Path(name))
    import open_clip

    model, _, rest = name.partition("/")
    if model not in open_clip.list_models() or not rest:
        raise _unknown(name)
    if tag := open_clip.get_pretrained_cfg(model, rest):
        return _by_tag(name, model, tag)
    if Path(rest).is_file():
        _check_text_tower(name, open_clip.get_model_config(model))
        return Weights(model, Path(rest), in_folder=False)
    raise _unknown(name)


def weights_digest(name: str) -> str:
    """sha256 of the weights that `name` stands for, hex, without loading the model."""
    return sha256(find_weights(name).path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_folder(name: str, folder: Path) -> Weights:
    for weights in (folder / weights_name for weights_name in FOLDER_NAMES):
        if (folder / CONFIG_NAME).is_file() and weights.is_file():
            _check_text_tower(name, _model_config(name, folder / CONFIG_NAME))
            return Weights(f"local-dir:{folder}", weights, in_folder=True)
    raise InputError(
        f"encoder {name!r}: {folder} lacks {CONFIG_NAME} or {FOLDER_NAMES[0]}; both belong there"
    )


def _by_tag(name: str, model: str, tag: dict[str, Any]) -> Weights:
    import open_clip

    _check_text_tower(name, open_clip.get_model_config(model))
    # The repository, and the file if the last part names one.
    repository, _, file_name = tag["hf_hub"].rpartition("/")
    names = (file_name,) if file_name else HUB_NAMES
    return Weights(
        model,
        _download(name, repository, names),
        in_folder=False,
        # open_clip only warns where weights were trained with the other activation.
        quick_gelu=bool(tag.get("quick_gelu")),
        preprocessing={key: value for key, value in tag.items() if key != "size"},
    )


def _on_hub(name: str) -> Weights:
    repository = name.removeprefix(HUB_PREFIX)
    config = _download(name, repository, (CONFIG_NAME,))
    _check_text_tower(name, _model_config(name, config))
    return Weights(name, _download(name, repository, HUB_NAMES), in_folder=True)


def _model_config(name: str, path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"encoder {name!r}: {path} is no configuration of open_clip's ({error!r}); expected "
            "JSON with model_cfg and preprocess_cfg"
        ) from error
    return config


def _check_text_tower(name: str, config: dict[str, Any]) -> None:
    """open_clip takes some text towers from a package that it does not install."""
    settings = config.get("text_cfg", {})
    if "hf_model_name" in settings and importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"encoder {name!r}: its text tower needs the package transformers; "
            "`pip install transformers`, or choose another encoder"
        )


def _download(name: str, repository: str, file_names: Sequence[str]) -> Path:
    """The first of these files that the repository has, from the hub's cache or the hub."""
    try:
        for file_name in file_names:
            cached = try_to_load_from_cache(repository, file_name)
            if isinstance(cached, str):
                return Path(cached)
        _probe_hub()
        for file_name in file_names:
            try:
                return Path(hf_hub_download(repository, file_name))
            except RemoteEntryNotFoundError:
                continue
        reason = f"the repository has no {' or '.join(file_names)}"
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
        f"encoder {name!r}: {repository} can't be downloaded from {hub.ENDPOINT} ({reason}); "
        "connect this machine to it, or give the weights as a file (--encoder "
        "MODEL/path/to/weights) or as a folder that holds them beside their open_clip_config.json"
    )


def _probe_hub() -> None:
    """Raises OSError within seconds if the hub does not answer at all."""
    if hub.HF_HUB_OFFLINE:
        raise ConnectionError(f"HF_HUB_OFFLINE is {os.environ.get('HF_HUB_OFFLINE', '1')}")
    try:
        request = urllib.request.Request(hub.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # It answers; whether it has the file is the download's to say.
    except urllib.error.URLError as error:
        raise ConnectionError(str(error.reason)) from error


def _unknown(name: str) -> InputError:
    import open_clip

    known = [*EMBEDDED_FOLDERS, *("/".join(pair) for pair in open_clip.list_pretrained())]
    model, _, rest = name.partition("/")
    same_model = [candidate for candidate in known if candidate.startswith(f"{model}/")]
    nearest = difflib.get_close_matches(name, same_model or known, n=3, cutoff=0.0)
    what = f"{rest!r} is no weights file and no weights of {model}" if same_model else "unknown"
    return InputError(
        f"encoder {name!r}: {what}; the nearest are {', '.join(nearest)}; "
        f"MODEL/path/to/weights, a folder with {CONFIG_NAME} and hf-hub:org/name work too"
    )
