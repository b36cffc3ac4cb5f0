"""The manifests of docs/kubernetes are valid: plain objects and every pod by the API's schemas, Ray's parts by Ray itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import runtime.cli.commands
from runtime.core.options import options_from_values

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "kubernetes"
VERSION = "1.31"


def _documents() -> list[tuple[str, dict[str, Any]]]:
    return [(file.name, one) for file in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(file.read_text())]


def _pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod spec below `value`."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for one in value.values():
            yield from _pods(one)
    elif isinstance(value, list):
        for one in value:
            yield from _pods(one)


@pytest.mark.parametrize(("name", "document"), _documents(), ids=lambda value: value if isinstance(value, str) else value["kind"])
def test_objects_fit_the_schemas(name, document):
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, VERSION, strict=True)
    for pod in _pods(document):
        named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        kubernetes_validate.validate(named, VERSION, strict=True)
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, name


def test_the_schemas_refuse_what_is_wrong():
    (document,) = [one for _, one in _documents() if one["kind"] == "DaemonSet"]
    document["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_serve_config_is_one_that_ray_and_the_app_take():
    from ray.serve.schema import ServeDeploySchema

    from runtime.cluster.app import ClusterOptions

    (document,) = [one for _, one in _documents() if one["kind"] == "RayService"]
    (app,) = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"])).applications
    assert app.import_path == "runtime.cluster.app:build"
    options = options_from_values(ClusterOptions, app.args)
    workers = document["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert options.max_replicas == workers["maxReplicas"]


@pytest.mark.parametrize(("name", "document"), _documents(), ids=lambda value: value if isinstance(value, str) else value["kind"])
def test_commands_are_ones_that_the_cli_parses(name, document):
    lines = [
        [*c.get("command", []), *c.get("args", [])]
        for pod in _pods(document)
        for c in [*pod["containers"], *pod.get("initContainers", [])]
    ]
    lines += [document["spec"]["entrypoint"].split()] if document["kind"] == "RayJob" else []
    for line in lines:
        if line[:3] == ["python", "-m", "runtime"]:
            runtime.cli.commands.parser().parse_args(line[3:])


def test_the_grace_period_is_longer_than_the_drain():
    for _, document in _documents():
        for pod in _pods(document):
            drain = re.search(r"--drain[=,' \[]+(\d+)", str(pod["containers"][0].get("args", "")))
            assert not drain or int(drain[1]) < pod["terminationGracePeriodSeconds"]
