"""What the content of a folder is made from, written before the first byte of it.

Every stage that fills a folder claims it first. The same stamp again means: go on where a killed
run stopped, keep what is finished. Another stamp means that the folder belongs to another input
or configuration, and that is the user's to decide.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.config import StageConfig
from infra.errors import ConflictError
from infra.records import read_record


class Stamp(BaseModel):
    """The input and the configuration that a folder's content follows from."""

    model_config = ConfigDict(frozen=True)

    stage: str
    input_digest: str
    config_digest: str
    config: dict[str, Any]

    @classmethod
    def of(cls, stage: str, config: StageConfig, input_digest: str) -> "Stamp":
        return cls(
            stage=stage,
            input_digest=input_digest,
            config_digest=config.digest(),
            config=config.identity(),
        )


def stamp_url(folder: str) -> str:
    return storage.join(folder, "stamp.json")


def claim(
    folder: str,
    stamp: Stamp,
    *,
    overwrite: bool = False,
    clear: Callable[[str], None] = storage.remove,
) -> None:
    """Begin or go on with the content of `folder`; raises ConflictError if it is another's.

    `overwrite` has another's content removed first: by `clear`, or else the whole folder.
    """
    url = stamp_url(folder)
    if storage.exists(url):
        there = read_record(url, Stamp)
        if (there.input_digest, there.config_digest) == (stamp.input_digest, stamp.config_digest):
            return
        if not overwrite:
            raise ConflictError(
                f"{folder}: holds the output of {_difference(there, stamp)}; choose another place, "
                "or pass --overwrite to replace it"
            )
        clear(folder)
    storage.publish_text(url, stamp.model_dump_json(indent=2) + "\n")


def _difference(there: Stamp, here: Stamp) -> str:
    if there.stage != here.stage:
        return f"`{there.stage}`, not of `{here.stage}`"
    if there.input_digest != here.input_digest:
        return f"another input (digest {there.input_digest}, now {here.input_digest})"
    changed = "; ".join(differences(there.config, here.config))
    return f"another configuration ({changed})"


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Each setting that two configurations have apart, nested ones by their dotted names."""
    old, new = _flat(there), _flat(here)
    return [
        f"{name} = {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat
