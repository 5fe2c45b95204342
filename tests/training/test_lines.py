"""Files of JSON lines on a disk and on an S3 server."""

import threading
from pathlib import Path

import pytest

from infra import storage
from infra.errors import StorageError
from training import lines
from training.lines import TAIL_BYTES, GrowingFile, Line, last_line, publish_lines, read_lines


@pytest.mark.parametrize("store", ["tmp_path", "s3_bucket"])
def test_the_last_line_is_found_whatever_the_file_is_long(
    store: str, request: pytest.FixtureRequest
) -> None:
    url = storage.join(str(request.getfixturevalue(store)), "lines.jsonl")
    assert last_line(url) is None
    many: list[Line] = [{"step": step, "note": "x" * 90} for step in range(TAIL_BYTES // 50)]
    for some in (many[:1], many[:3], many):
        publish_lines(url, some)
        assert last_line(url) == some[-1]
        assert read_lines(url) == some


def test_a_line_that_is_cut_off_is_none(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"step": 1}\n{"st')
    assert last_line(str(file)) == {"step": 1}
    file.write_text('{"st')
    assert last_line(str(file)) is None


def test_a_writer_goes_on_while_its_lines_are_sent(
    held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PUBLISH_EVERY_S", 0.0)
    url = "held://run/lines.jsonl"
    with GrowingFile(url) as file:
        for step in (1, 2):
            file.append({"step": step})
            file.publish_now_and_then()  # what is written to this storage waits
        assert read_lines(url) == []
        held.set()
        file.publish()
        assert read_lines(url) == [{"step": 1}, {"step": 2}]


def test_a_long_file_is_sent_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PUBLISH_EVERY_S", 0.0)
    monkeypatch.setattr(lines, "MAX_BYTES_PER_S", 0.01)
    url = str(tmp_path / "lines.jsonl")
    with GrowingFile(url) as file:
        for step in range(3):
            file.append({"step": step})
            file.publish_now_and_then()
    assert read_lines(url) == [{"step": 0}]


def test_a_file_that_cannot_be_sent_is_told_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PUBLISH_EVERY_S", 0.0)
    (tmp_path / "run").write_text("a file where a folder should be")
    file = GrowingFile(str(tmp_path / "run" / "lines.jsonl"))
    file.append({"step": 1})
    file.publish_now_and_then()
    with pytest.raises(StorageError, match="can't be written"), file:
        pass  # it is waited for at the end


def test_a_file_goes_on_after_the_lines_that_are_kept(tmp_path: Path) -> None:
    url = str(tmp_path / "lines.jsonl")
    publish_lines(url, [{"step": step, "loss": 1 / (step + 1)} for step in range(5)])
    before = Path(url).read_bytes().splitlines(keepends=True)
    with GrowingFile(url) as file:
        file.keep(lambda line: line["step"] <= 2)
        file.append({"step": 3})
        file.publish()
    assert Path(url).read_bytes() == b"".join(before[:3]) + b'{"step": 3}\n'
