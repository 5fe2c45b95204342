"""The KubeRay manifests: their fields, their pods by Kubernetes's schema, and what they run."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

import carrara

SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
NAMES = ["raycluster", "rayjob-build", "rayjob-embed", "rayjob-train", "rayservice"]


@pytest.fixture(params=NAMES)
def manifest(deploy: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    return _read(deploy, request.param)


def test_every_field_is_one_of_kuberays(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, SCHEMA)


def test_a_misspelt_field_is_found(deploy: Path) -> None:
    manifest = _read(deploy, "raycluster")
    manifest["spec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(manifest, SCHEMA)


def test_every_pod_is_valid_and_confined(manifest: dict[str, Any]) -> None:
    for template in _pod_templates(manifest):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}}
        kubernetes_validate.validate({**pod, "template": template}, "1.34", strict=True)
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "memory" in container["resources"]["limits"]


def test_ray_is_of_the_version_that_is_pinned(deploy: Path) -> None:
    for name in NAMES:
        spec = _read(deploy, name)["spec"]
        cluster = spec.get("rayClusterConfig", spec)
        assert cluster.get("rayVersion", ray.__version__) == ray.__version__


@pytest.mark.parametrize("name", ["rayjob-build", "rayjob-embed", "rayjob-train"])
def test_a_job_runs_commands_that_there_are(deploy: Path, name: str) -> None:
    for command in _read(deploy, name)["spec"]["entrypoint"].split("&&"):
        program, *tokens = shlex.split(command)
        assert program == "carrara"
        app = carrara._application()
        _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        workers = getattr(bound.arguments["config"], "workers", None)
        # On a cluster that has no workers yet their number can't be counted.
        assert workers is None or workers.num_workers


@pytest.mark.parametrize("name", ["rayjob-build", "rayjob-embed", "rayjob-train"])
def test_what_works_in_the_driver_does_so_on_a_worker(deploy: Path, name: str) -> None:
    spec = _read(deploy, name)["spec"]
    stages = {shlex.split(command)[1] for command in spec["entrypoint"].split("&&")}
    assert ("entrypointNumCpus" in spec) == bool(stages & {"index", "select", "pack"})
    (workers, _) = _read(deploy, "raycluster")["spec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    cpus = int(container["resources"]["limits"]["cpu"])
    assert 0 < spec.get("entrypointNumCpus", 1) <= cpus


def test_jobs_choose_the_cluster_that_is_described_beside_them(deploy: Path) -> None:
    cluster = _read(deploy, "raycluster")["metadata"]["name"]
    for name in NAMES[1:4]:
        assert _read(deploy, name)["spec"]["clusterSelector"] == {"ray.io/cluster": cluster}


def test_the_service_is_configured_as_ray_serve_and_the_application_take_it(deploy: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    from retrieval.serving import ray_serve

    text = _read(deploy, "rayservice")["spec"]["serveConfigV2"]
    (search,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert search.import_path == f"{ray_serve.__name__}:{ray_serve.application.__name__}"
    application = ray_serve.application(search.args)
    (deployment,) = search.deployments
    assert deployment.name == application._bound_deployment.name


def _read(deploy: Path, name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((deploy / "kuberay" / f"{name}.yaml").read_text())
    return manifest


def _pod_templates(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = manifest["spec"]
    cluster = spec.get("rayClusterConfig", spec)
    if "headGroupSpec" in cluster:
        yield cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", []):
        yield group["template"]
