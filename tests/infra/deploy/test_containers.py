"""The Dockerfile, the compose file and what it mounts, and every shell command."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Tool = Callable[..., subprocess.CompletedProcess[str]]
SECRETS = {"S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b", "GRAFANA_PASSWORD": "c"}


def test_hadolint_finds_nothing_in_the_dockerfile(deploy: Path, run_tool: Tool) -> None:
    found = run_tool("hadolint", deploy / "docker" / "Dockerfile")
    assert found.returncode == 0, found.stdout


def test_every_target_ends_as_a_user_and_installs_what_is_pinned(deploy: Path) -> None:
    text = (deploy / "docker" / "Dockerfile").read_text()
    assert re.findall(r"^FROM base AS (\w+)", text, re.MULTILINE) == ["cpu", "cuda"]
    for target in re.split(r"^FROM ", text, flags=re.MULTILINE)[2:]:
        assert re.findall(r"^USER (.*)", target, re.MULTILINE) == ["1000:1000"]
    joined = re.sub(r"\\\n *", "", text)
    installs = Counter(re.findall(r"pip install (.*)", joined))
    by_hash = "--require-hashes --no-deps --requirement"
    by_version = "--constraint constraints.txt"
    torch = r'${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch torchvision'
    assert installs == {
        f"{by_hash} rest.lock": 1,
        f"{by_hash} torch.lock": 1,
        f"{by_version} {torch}": 1,
        f"{by_version} ${{EXTRA_PACKAGES}}": 2,
        "--no-deps --no-build-isolation .": 2,
    }


def test_the_lock_is_parted_into_torch_with_its_libraries_and_the_rest(
    deploy: Path, tmp_path: Path
) -> None:
    (program,) = re.findall(
        r"awk '([^']*)' requirements.lock", (deploy / "docker" / "Dockerfile").read_text()
    )
    lock = deploy / "docker" / "requirements.lock"
    subprocess.run(["awk", program.replace("\\\n", " "), lock], cwd=tmp_path, check=True)
    torchs, rest = ((tmp_path / name).read_text() for name in ("torch.lock", "rest.lock"))
    assert sorted((torchs + rest).splitlines()) == sorted(lock.read_text().splitlines())
    names = set(re.findall(r"^([^ =]+)==", torchs, re.MULTILINE))
    assert {"torch", "torchvision", "triton", "cuda-bindings", "nvidia-nccl-cu13"} <= names
    assert not re.findall(r"^(?:torch==|nvidia|cuda)", rest, re.MULTILINE)
    assert re.findall(r"^(ray|numpy|hatchling)==", rest, re.MULTILINE)


def test_the_build_sees_what_the_wheel_takes_and_no_more(deploy: Path) -> None:
    ignored = (deploy / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    seen = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    repository = deploy.parents[1]
    packages = {path.parent.name for path in repository.glob("*/__init__.py")}
    files = {"carrara.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert seen == packages - {"benchmarks"} | files


@pytest.mark.parametrize("profile", [[], ["--profile", "search"]])
def test_compose_accepts_its_file(deploy: Path, run_tool: Tool, profile: list[str]) -> None:
    file = deploy / "compose" / "compose.yaml"
    arguments = ["--file", file, *profile, "config", "--format", "json"]
    resolved = run_tool("docker-compose", *arguments, env={**os.environ, **SECRETS})
    assert resolved.returncode == 0, resolved.stderr
    services = json.loads(resolved.stdout)["services"]
    for service in services.values():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"


def test_compose_wants_secrets_chosen(deploy: Path, run_tool: Tool) -> None:
    unset = {name: value for name, value in os.environ.items() if name not in SECRETS}
    refused = run_tool(
        "docker-compose", "--file", deploy / "compose" / "compose.yaml", "config", env=unset
    )
    assert refused.returncode != 0
    assert "choose one in .env" in refused.stderr


def test_prometheus_accepts_its_settings(deploy: Path, run_tool: Tool) -> None:
    checked = run_tool("promtool", "check", "config", deploy / "compose" / "prometheus.yaml")
    assert checked.returncode == 0, checked.stderr


def test_grafana_is_given_the_dashboards_that_are_mounted(deploy: Path) -> None:
    compose = yaml.safe_load((deploy / "compose" / "compose.yaml").read_text())
    mounts = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    provisioning = deploy / "compose" / "grafana" / "provisioning"
    providers = yaml.safe_load((provisioning / "dashboards" / "dashboards.yaml").read_text())
    for provider in providers["providers"]:
        path = provider["options"]["path"]
        assert any(path.startswith(mount) for mount in mounts), path


def test_yaml_is_tidy(deploy: Path, run_tool: Tool) -> None:
    found = run_tool("yamllint", "--strict", "--config-file", deploy / ".yamllint", deploy)
    assert found.returncode == 0, found.stdout


def test_shell_scripts_and_commands_are_sound(deploy: Path, run_tool: Tool, tmp_path: Path) -> None:
    repository = deploy.parents[1]
    scripts = [*repository.glob("infra/**/*.sh"), *repository.glob("tests/*.sh")]
    assert scripts
    for cluster in (deploy / "ray").glob("*.yaml"):
        config = yaml.safe_load(cluster.read_text())
        commands = [
            command
            for name, value in config.items()
            if name.endswith("_commands")
            for command in value
        ]
        script = tmp_path / f"{cluster.stem}.sh"
        script.write_text("\n".join(["#!/bin/bash", *commands]))
        scripts.append(script)
    found = run_tool("shellcheck", *scripts)
    assert found.returncode == 0, found.stdout


def test_volumes_are_mounted_where_the_image_s_user_may_write(deploy: Path) -> None:
    compose = yaml.safe_load((deploy / "compose" / "compose.yaml").read_text())
    dockerfile = (deploy / "docker" / "Dockerfile").read_text()
    made = re.findall(r"install --directory --owner=1000 --group=1000 (.*)", dockerfile)
    mounted = [
        volume.split(":")[1]
        for service in compose["services"].values()
        if service["image"].startswith("carrara:")
        for volume in service.get("volumes", [])
        if volume.split(":")[0] in compose["volumes"]
    ]
    assert mounted == ["/tmp/ray"]
    assert set(mounted) <= {folder for line in made for folder in line.split()}
