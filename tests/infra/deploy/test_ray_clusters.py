"""The cluster files, by Ray's schema, by the clouds' own, and by what Ray's autoscaler does."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

CLOUDS = ("aws", "gcp")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_the_file(deploy: Path, cloud: str) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(_prepared(deploy, cloud))


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("kind", "demand"), [("cpu", {"CPU": 1}), ("gpu", {"CPU": 8, "GPU": 1})])
def test_spot_comes_first_and_on_demand_where_spot_can_not_be_had(
    deploy: Path, cloud: str, kind: str, demand: dict[str, float]
) -> None:
    config = _prepared(deploy, cloud)
    assert _launched(config, demand, failed=None) == {f"{kind}-spot"}
    assert _launched(config, demand, failed=f"{kind}-spot") == {kind}


def test_ec2_knows_every_field_and_instance_type(deploy: Path) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    for node in _node_configs(deploy, "aws"):
        report = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), report.generate_report()
        assert node["InstanceType"] in ec2.shape_for("InstanceType").enum


def test_compute_engine_knows_every_field(deploy: Path) -> None:
    import googleapiclient.discovery_cache

    folder = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    for node in _node_configs(deploy, "gcp"):
        _check_discovered(node, {"$ref": "Instance"}, schemas, "node_config")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_spills_goes_to_the_local_disks(deploy: Path, cloud: str) -> None:
    config = _read(deploy, cloud)
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "--object-spilling-directory=/mnt/scratch/spill" in config[commands][-1]
    assert "--volume /mnt/scratch:/mnt/scratch" in config["docker"]["run_options"]


def _read(deploy: Path, cloud: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((deploy / "ray" / f"{cloud}.yaml").read_text())
    return config


def _prepared(deploy: Path, cloud: str) -> dict[str, Any]:
    """With Ray's defaults filled in, as `ray up` does before it asks the cloud anything."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(_read(deploy, cloud))
    return config


def _node_configs(deploy: Path, cloud: str) -> list[dict[str, Any]]:
    types = _read(deploy, cloud)["available_node_types"].values()
    return [node_type["node_config"] for node_type in types]


def _launched(config: dict[str, Any], demand: dict[str, float], failed: str | None) -> set[str]:
    """The node types that Ray's autoscaler starts for 32 such requests."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    autoscaling = AutoscalingConfig(config, skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=autoscaling.get_node_type_configs(),
        max_num_nodes=autoscaling.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make(demand)] * 32
        ),
        recoverable_resource_availabilities={failed: 0.0} if failed else {},
    )
    return {
        launch.instance_type for launch in ResourceDemandScheduler().schedule(request).to_launch
    }


def _check_discovered(value: Any, schema: dict[str, Any], schemas: Any, where: str) -> None:
    """A value against a schema of Google's discovery documents, which JSON Schema can't read."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    if schema["type"] == "array":
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            _check_discovered(item, schema["items"], schemas, f"{where}[{number}]")
    elif schema["type"] == "object":
        for name, item in value.items():
            assert name in schema["properties"], f"{where}.{name}: unknown field"
            _check_discovered(item, schema["properties"][name], schemas, f"{where}.{name}")
    else:
        assert value in schema.get("enum", [value]), f"{where}: {value!r} is none of {schema}"
        # Google's documents say int64 as strings.
        kinds = {"string": (str, int), "boolean": (bool,), "integer": (int,)}
        assert isinstance(value, kinds[schema["type"]]), f"{where}: {value!r}"
