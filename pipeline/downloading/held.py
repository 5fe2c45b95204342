"""What ROOT holds already, and whether this command may touch it.

Reads ROOT/manifest.json, ROOT/download/plan.json and the names in ROOT/shards/.
"""

from typing import TYPE_CHECKING

from infra import storage
from infra.errors import ConflictError, DamagedError
from infra.stamp import differences
from pipeline.corpus import Manifest, list_shard_files, manifest_url, read_manifest
from pipeline.downloading import worklist
from pipeline.downloading.worklist import Plan

if TYPE_CHECKING:
    from pipeline.download import Config


def finished(config: "Config", input_digest: str) -> Manifest | None:
    """The manifest of this very corpus if it is whole; raises where ROOT holds another."""
    root = config.root
    manifest = held_manifest(config)
    held = manifest or worklist.read_plan(root)
    if held and is_of(held, config, input_digest):
        missing = _missing_shards(root, manifest) if manifest else []
        if manifest and missing and manifest.extensions:
            raise _lacking(root, missing)
        return None if missing else manifest
    has_shards = bool(list_shard_files(root))
    if (held or has_shards) and not config.overwrites:
        what = _difference(held, config, input_digest) if held else "shards of unknown origin"
        raise ConflictError(
            f"{root}: holds {what}; choose another ROOT or replace what is there with --overwrite"
        )
    return None


def extendable(config: "Config", input_digest: str) -> Manifest | None:
    """The whole corpus that this list extends; None where ROOT holds none, or the list already.

    Raises ConflictError for a corpus of another configuration, or one that was not downloaded.
    """
    manifest = held_manifest(config)
    if manifest is None or is_of(manifest, config, input_digest):
        return None
    root = config.root
    if manifest.stage != "download":
        raise ConflictError(
            f"{root}: holds a corpus that `carrara {manifest.stage}` made; a download can extend "
            "only what was downloaded: choose another ROOT"
        )
    if manifest.config_digest != config.digest():
        changed = "; ".join(differences(manifest.config, config.identity()))
        raise ConflictError(
            f"{root}: holds a corpus of another configuration ({changed}); extend it with the "
            "settings that it has, or choose another ROOT"
        )
    if missing := _missing_shards(root, manifest):
        raise _lacking(root, missing)
    return manifest


def own_shards(manifest: Manifest, input_digest: str) -> range:
    """Numbers of the shards that a list of the corpus gave."""
    stop = len(manifest.shards)
    for extension in reversed(manifest.extensions):
        start = stop - extension.num_shards
        if extension.input_digest == input_digest:
            return range(start, stop)
        stop = start
    assert manifest.input_digest == input_digest
    return range(stop)


def held_manifest(config: "Config") -> Manifest | None:
    if not storage.exists(manifest_url(config.root)):
        return None
    try:
        return read_manifest(config.root)
    except DamagedError:
        if config.overwrites:
            return None
        raise


def is_of(held: Manifest | Plan, config: "Config", input_digest: str) -> bool:
    """Whether the list, configured so, is in it."""
    return input_digest in _lists(held) and held.config_digest == config.digest()


def _difference(held: Manifest | Plan, config: "Config", input_digest: str) -> str:
    if input_digest not in _lists(held):
        return (
            f"the corpus of another list (digest {held.input_digest}, that of {config.url_list} is "
            f"{input_digest})"
        )
    changed = "; ".join(differences(held.config, config.identity()))
    return f"this list's corpus with another configuration ({changed})"


def _lists(held: Manifest | Plan) -> set[str]:
    extensions = held.extensions if isinstance(held, Manifest) else []
    return {held.input_digest, *(extension.input_digest for extension in extensions)}


def _missing_shards(root: str, manifest: Manifest) -> list[str]:
    whole = {shard.name for shard in worklist.whole_shards(root, manifest.shards)}
    return [shard.name for shard in manifest.shards if shard.name not in whole]


def _lacking(root: str, missing: list[str]) -> ConflictError:
    return ConflictError(
        f"{root}: shards {', '.join(missing)} are missing or cut short, and no single list makes "
        "an extended corpus anew; restore them, or choose another ROOT"
    )
