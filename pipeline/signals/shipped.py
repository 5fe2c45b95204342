"""Models that come inside Python packages: where they lie, their digests, how they are run.

Nothing is fetched: what the package does not hold is the user's to install.
"""

import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import ConfigError
from pipeline.score import Options

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class ShippedModel:
    name: str
    """Package, version and file."""
    path: Path
    sha256: str


def shipped_model(signal: str, package: str, module: str, file: str) -> ShippedModel:
    """Raises ConfigError naming the package to install."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"signals {signal!r}: its model comes with the package {package}, which is not "
            f"installed here; `pip install {package}`"
        )
    path = Path(spec.origin).parent / file
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    version = importlib.metadata.version(package)
    return ShippedModel(f"{package} {version} {path.name}", path, digest)


def num_threads(options: Options) -> int:
    """A worker's share of its machine."""
    return int(options.get("num_threads") or 1)


def device_identity(options: Options) -> dict[str, Any]:
    """Part of a signal's identity: a GPU's last digits are not a CPU's.

    Raises ConfigError where workers ask for GPUs and onnxruntime can't use one.
    """
    if options.get("device") != "cuda":
        return {}
    import onnxruntime

    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise ConfigError(
            f"workers.gpus_per_worker: onnxruntime {onnxruntime.__version__} here runs on no GPU; "
            "install onnxruntime-gpu in its place, or leave the setting out"
        )
    return {"device": "cuda"}


def open_session(model: ShippedModel, options: Options) -> "onnxruntime.InferenceSession":
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = num_threads(options)
    settings.inter_op_num_threads = 1
    # Threads that spin while they wait take the time of the workers beside them.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    providers = [PROVIDERS[options.get("device") or "cpu"]]
    return onnxruntime.InferenceSession(str(model.path), settings, providers=providers)
