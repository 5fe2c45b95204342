"""Settings: immutable, strict, and with a digest of what decides the output."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from infra.config import (
    EXECUTION_ONLY,
    POSITIONAL,
    Place,
    Settings,
    StageConfig,
    hide_password,
)


class Nested(Settings):
    depth: int = 2


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    image_size: int = 64
    nested: Nested = Nested()
    num_threads: Annotated[int, EXECUTION_ONLY] = 1


def test_digest_changes_with_what_decides_the_output() -> None:
    digest = Config(root="a").digest()
    assert Config(root="a", image_size=65).digest() != digest
    assert Config(root="a", nested=Nested(depth=3)).digest() != digest


def test_digest_ignores_where_and_how_fast() -> None:
    assert Config(root="a").digest() == Config(root="b", num_threads=8).digest()


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(ValidationError, match="image_siez"):
        Config.model_validate({"root": "a", "image_siez": 3})


def test_positional_settings_come_before_inherited_ones() -> None:
    class Base(Settings):
        size: int = 1

    class Derived(Base, StageConfig):
        root: Annotated[str, POSITIONAL]

    assert list(Derived.model_fields) == ["root", "size"]


def test_only_marked_settings_are_positional() -> None:
    kinds = {name: field.kw_only for name, field in Config.model_fields.items()}
    assert kinds == {"root": False, "image_size": True, "nested": True, "num_threads": True}


def test_a_place_is_named_so_that_any_worker_finds_it() -> None:
    assert Config(root="corpus").root == str(Path("corpus").absolute())
    assert Config(root="s3://bucket/corpus").root == "s3://bucket/corpus"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://me:hunter2@host/corpus", "ftp://***@host/corpus"),
        ("ftp://me:hun@ter2@host/corpus", "ftp://***@host/corpus"),
        ("https://:hunter2@host:8080", "https://***@host:8080"),
        ("s3://AKIA2:hun/ter+2@bucket/corpus", "s3://***@bucket/corpus"),
        ("'a://b:hunter2@c', 'd://e:hunter2@f'", "'a://***@c', 'd://***@f'"),
    ],
)
def test_a_password_is_hidden(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        *("s3://bucket/a@b", "http://host:8080/a@b", "http://[::1]:80/a@b", "sftp://me@host/a:b"),
        *("zip://x.zip::s3://bucket/a@b", "zip://x::s3://bucket/a@b", "/home/me/a:b@c", "a@b:c"),
    ],
)
def test_what_is_no_password_is_left_alone(url: str) -> None:
    assert hide_password(url) == url
