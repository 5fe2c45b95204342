"""What every stage's configuration has in common.

A stage is a module with a `Config(StageConfig)` and a `run(config)`. A setting comes from its
default, then from the stage's table in a TOML file, then from the command line; `carrara.py`
merges the three. The docstring under a field is its help text.
"""

import hashlib
import json
import re
import tomllib
from enum import Enum
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import AfterValidator, BaseModel, ConfigDict

from infra import storage
from infra.errors import ConfigError


class _Mark(Enum):
    """What `Annotated` says of a setting beside its type."""

    POSITIONAL = "positional"
    EXECUTION_ONLY = "execution only"


POSITIONAL = _Mark.POSITIONAL
"""The setting may be given by its place on the command line, without its name."""

EXECUTION_ONLY = _Mark.EXECUTION_ONLY
"""The setting says where or how fast, not what: it leaves the output's bytes as they are."""


def without_password(url: str) -> str:
    """Raises ValueError: addresses are written into manifests, records and logs."""
    if hide_password(url) != url:
        raise ValueError(
            "has a password in it; give credentials by the environment or the files that the "
            "store's own tools read"
        )
    return url


def hide_password(text: str) -> str:
    """With `***` for what stands between `://` and `@` in each URL that has a password."""
    return _PASSWORD.sub("***@", text)


_PASSWORD = re.compile(
    r"(?<=://)(?:[^/\s@]*:[^/\s]*@"  # me:secret@, up to the last @ of the host's part
    r"|\w*:(?!\d*[/?#])[^\s@:]*@)"  # a key of AWS and its secret, which may have slashes
)

Address = Annotated[str, AfterValidator(without_password)]
"""A URL that is shown or written down."""

Place = Annotated[
    str, AfterValidator(without_password), AfterValidator(storage.absolute), EXECUTION_ONLY
]
"""A folder, file or fsspec URL to read or write; where something is never decides what it is."""


class Settings(BaseModel):
    """A group of settings: immutable, and an unknown name is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():
            field.kw_only = POSITIONAL not in field.metadata
        # As in any signature the positional ones come first, inherited settings after them.
        fields = cls.__pydantic_fields__
        ordered = sorted(fields.items(), key=lambda item: bool(item[1].kw_only))
        fields.clear()
        fields.update(ordered)

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is written, as JSON-able values."""
        names = {
            name
            for name, field in type(self).model_fields.items()
            if EXECUTION_ONLY not in field.metadata
        }
        return self.model_dump(mode="json", include=names)


@Parameter(name="*")  # its settings are --image-size, not --config.image-size
class StageConfig(Settings):
    """The settings of one stage."""

    def digest(self) -> str:
        """16 hex digits over the settings that decide what is written."""
        return digest_of(self.identity())


def read_toml(url: str, name: str) -> dict[str, Any]:
    """What a user wrote; raises ConfigError, which says the name, for what is not TOML."""
    try:
        return tomllib.loads(storage.read_text(url))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not TOML ({error})") from None


def digest_of(value: Any) -> str:
    """16 hex digits of sha256 over a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
