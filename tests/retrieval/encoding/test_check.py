"""`doctor`'s line on the encoder: at hand, not known, damaged."""

from pathlib import Path

import pytest

from infra.checks.finding import Finding, Subject
from retrieval.encoding.check import OTHERWISE, check
from retrieval.encoding.weights import CONFIG_NAME, EMBEDDED_FOLDERS, FOLDER_NAMES

SHIPPED = "Carrara-S/emoji_clipart"


def finding(encoder: str) -> Finding:
    (only,) = check(Subject(None, encoder, ""))
    assert only.check == "encoder"
    return only


def test_an_encoder_at_hand_is_ok() -> None:
    found = finding(SHIPPED)
    assert found.state == "ok"
    assert found.found.startswith(f"{SHIPPED} on ")


@pytest.mark.parametrize("name", ["no-such-model/laion2b", "ViT-B-32/no-such-tag"])
def test_one_that_nobody_knows_is_broken(name: str) -> None:
    found = finding(name)
    assert found.state == "broken"
    assert name in found.found
    assert found.advice


def test_damaged_weights_are_broken_and_say_what_to_do(tmp_path: Path) -> None:
    config = EMBEDDED_FOLDERS[SHIPPED] / CONFIG_NAME
    (tmp_path / CONFIG_NAME).write_bytes(config.read_bytes())
    (tmp_path / FOLDER_NAMES[0]).write_bytes(b"no tensors")
    found = finding(str(tmp_path))
    assert (found.state, found.advice) == ("broken", OTHERWISE)
    assert "can't be used as weights" in found.found
