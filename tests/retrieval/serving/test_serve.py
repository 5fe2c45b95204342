"""`carrara serve` as people run it: a process that says where it is, and ends when it is told."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import carrara
from retrieval.serving.settings import ServeSettings, name_and_root

ROOT = Path(__file__).parents[3]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("ending", "start"), [(signal.SIGINT, "--warm"), (signal.SIGTERM, "--no-warm")]
)
def test_it_says_where_it_is_and_ends_in_order(
    served_root: str, ending: signal.Signals, start: str
) -> None:
    command = [sys.executable, "-m", "carrara", "serve", f"faces={served_root}", "--port", "0"]
    with subprocess.Popen(
        [*command, start, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                if "ready at" in line:
                    break
            assert told[0].startswith("serve: loading faces")
            assert "faces: 24 samples" in told[-2]
            found = re.search(r"ready at (http://127\.0\.0\.1:\d+/)", told[-1])
            assert found, told
            with urllib.request.urlopen(f"{found[1]}indices-list") as answer:
                assert json.load(answer) == ["faces"]
            process.send_signal(ending)
            out, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    summary = json.loads(out)
    assert (summary["stage"], summary["num_in"]) == ("serve", 1)


def test_a_port_that_is_taken_is_told_at_once(
    served_root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert carrara.run_command(["serve", served_root, "--port", str(port)]) == 2
    assert f"--port {port}: can't listen there (Address already in use)" in complaint(capsys)


def test_a_corpus_without_an_index_names_the_command_to_run(
    small_corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carrara.run_command(["serve", small_corpus, "--port", "0"]) == 2
    *progress, line = capsys.readouterr().err.strip().splitlines()
    assert f"carrara index {small_corpus}" in line
    assert all("loading" in each for each in progress)


def test_two_indices_of_one_name_are_refused(
    small_corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carrara.run_command(["serve", small_corpus, small_corpus]) == 2
    assert "NAME=ROOT" in complaint(capsys)


def test_an_index_has_its_folder_s_name_or_the_one_it_is_given(tmp_path: Path) -> None:
    assert name_and_root(f"{tmp_path}/corpus/") == ("corpus", f"{tmp_path}/corpus")
    assert name_and_root("s3://bucket/a=b/corpus") == ("corpus", "s3://bucket/a=b/corpus")
    assert name_and_root("mine=s3://bucket/x") == ("mine", "s3://bucket/x")
    assert ServeSettings(roots=("a=x", "b=x")).roots == ("a=x", "b=x")
