"""The command line: light, strict, one line for a mistake."""

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

import carrara
from examples.emoji.server import serve, write_list
from infra.config import Settings
from pipeline.corpus import read_manifest

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("torch", "ray", "open_clip", "faiss", "duckdb", "cv2", "pandas", "pyarrow", "numpy", "PIL"),
    *("transformers", "fastapi", "aiohttp", "s3fs", "jinja2", "prometheus_client", "onnxruntime"),
)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stderr, which must be one line."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, carrara; carrara.run_command(['--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def is_group(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Settings)


@pytest.mark.parametrize("stage", carrara.STAGES)
def test_a_stage_s_help_loads_no_model_library_and_describes_every_setting(stage: str) -> None:
    program = (
        f"import sys, carrara; carrara.run_command([{stage!r}, '--help']);"
        "print([name for name in ('torch', 'ray', 'open_clip', 'faiss') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    *_, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    module = __import__(carrara.STAGES[stage].module, fromlist=["Config"])
    fields = module.Config.model_fields.items()
    assert not [name for name, field in fields if not (field.description or is_group(field))]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["downlaod", "a", "b"], "did you mean 'download'?"),
        (["download", "a"], "--root"),
        (["download", "a", "b", "--image-siez", "3"], "Did you mean --image-size?"),
        (["download", "a", "b", "--image-size", "large"], "--image-size 'large'"),
        (["download", "a", "b", "--config", "nowhere.toml"], "nowhere.toml: no such file"),
        (["train", "a", "b", "--config", "dmo"], "dmo: no such file; expected a TOML file, or one"),
        (["verify", "nowhere"], "nowhere: no corpus here"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carrara.run_command(argv) == 2
    assert expected in complaint(capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[downlod]\nimage_size = 3\n", "did you mean 'download'?"),
        ("[download]\nimage_siez = 3\n", "image_siez"),
        ("[download\n", "not TOML"),
    ],
)
def test_a_mistake_in_the_configuration_file_is_one_line(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    assert carrara.run_command(["download", "a", "b", "--config", str(file)]) == 2
    assert expected in complaint(capsys)


def test_a_setting_comes_from_the_default_then_the_file_then_the_command_line(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        '[download]\nimage_size = 48\nresize_mode = "border"\nallow_hosts = ["127.0.0.1"]\n'
    )
    pairs, root = tmp_path / "pairs.parquet", tmp_path / "corpus"
    argv = ["download", str(pairs), str(root), "--config", str(file), "--workers.local"]
    with serve() as base_url:
        write_list(pairs, base_url, num_pictures=30)
        assert carrara.run_command([*argv, "--image-size", "32"]) == 0
    config = read_manifest(str(root)).config
    chosen = (config["image_size"], config["resize_mode"], config["encode_quality"])
    assert chosen == (32, "border", 95)


@pytest.mark.parametrize("path", sorted(carrara.CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_settings_that_ship_go_by_their_name_and_fit_their_stages(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, settings in tomllib.loads(path.read_text()).items():
        config = importlib.import_module(carrara.STAGES[stage].module).Config
        assert {name.partition(".")[0] for name in settings} <= set(config.model_fields), stage
    assert carrara.run_command(["verify", "nowhere", "--config", path.stem]) == 2
    assert "nowhere: no corpus here" in complaint(capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["verify"],
        ["download", "pairs.parquet"],
        ["verify", "nowhere", "--config"],
        ["doctor", "--egress-url"],
        ["runs", "nowhere", "--dashboard"],
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert carrara.run_command([*argv, "ftp://me:hunter2@host/corpus"]) == 2
    line = complaint(capsys)
    assert "ftp://***@host/corpus" in line
    assert "has a password in it" in line
    assert "hunter2" not in line


def test_json_is_one_object_on_stdout(
    small_corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carrara.run_command(["verify", small_corpus, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["stage"] == "verify"
    assert answer["num_in"] == answer["num_out"] > 0
