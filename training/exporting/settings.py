"""Settings as they were when a model was trained, read back without the classes that check them."""

from types import SimpleNamespace
from typing import Any


class Settings(SimpleNamespace):
    """A group of settings: what JSON had as an object, with its names as attributes."""


def settings_of(value: Any) -> Any:
    if isinstance(value, dict):
        return Settings(**{name: settings_of(one) for name, one in value.items()})
    return tuple(map(settings_of, value)) if isinstance(value, list) else value
