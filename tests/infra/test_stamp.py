"""A folder belongs to one input and one configuration."""

from pathlib import Path
from typing import Annotated

import pytest

from infra.config import EXECUTION_ONLY, StageConfig
from infra.errors import ConflictError
from infra.stamp import Stamp, claim


class Config(StageConfig):
    size: int = 1
    threads: Annotated[int, EXECUTION_ONLY] = 1


def test_the_same_claim_goes_on(tmp_path: Path) -> None:
    claim(str(tmp_path), Stamp.of("embed", Config(), "input"))
    (tmp_path / "kept").write_text("x")
    claim(str(tmp_path), Stamp.of("embed", Config(threads=4), "input"))
    assert (tmp_path / "kept").exists()


def test_another_configuration_is_refused_by_the_setting_that_differs(tmp_path: Path) -> None:
    claim(str(tmp_path), Stamp.of("embed", Config(), "input"))
    with pytest.raises(ConflictError, match="size = 1, now 2"):
        claim(str(tmp_path), Stamp.of("embed", Config(size=2), "input"))


def test_another_input_is_refused(tmp_path: Path) -> None:
    claim(str(tmp_path), Stamp.of("embed", Config(), "input"))
    with pytest.raises(ConflictError, match="another input"):
        claim(str(tmp_path), Stamp.of("embed", Config(), "other"))


def test_overwrite_replaces_the_other_content(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    claim(str(folder), Stamp.of("embed", Config(), "input"))
    (folder / "old").write_text("x")
    claim(str(folder), Stamp.of("embed", Config(size=2), "input"), overwrite=True)
    assert not (folder / "old").exists()
    claim(str(folder), Stamp.of("embed", Config(size=2), "input"))
