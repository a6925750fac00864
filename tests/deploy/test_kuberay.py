"""The RayService manifest is valid, and agrees with the application that it deploys."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.tools import DEPLOY, passes, run, tool
from vox_serve.cluster.application import serve_config
from vox_serve.cluster.config import ClusterConfig, parse

MANIFEST = DEPLOY / "kuberay" / "vox-serve.yaml"


TYPES = {
    "text": {"type": "string"},
    "number": {"type": "integer"},
    "flag": {"type": "boolean"},
    "params": {"type": "object", "additionalProperties": {"type": "string"}},
    "any": {},
}


def closed(required: str = "", /, **fields: Any) -> dict[str, Any]:
    """A schema of an object with only these fields: names by type in TYPES, or a field's schema."""
    properties = {}
    for name, found in fields.items():
        properties |= dict.fromkeys(found.split(), TYPES[name]) if name in TYPES else {name: found}
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


SCHEMA = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    any="metadata",
    spec=closed(
        "serveConfigV2 rayClusterConfig",
        any="serveService upgradeStrategy",
        text="serveConfigV2",
        flag="excludeHeadPodFromServeSvc",
        rayClusterConfig=closed(
            "headGroupSpec",
            flag="suspend enableInTreeAutoscaling",
            text="managedBy rayVersion",
            any="autoscalerOptions gcsFaultToleranceOptions",
            params="headServiceAnnotations",
            headGroupSpec=closed(
                "template",
                any="template headService",
                flag="enableIngress",
                params="rayStartParams",
                serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
            ),
            workerGroupSpecs={
                "type": "array",
                "items": closed(
                    "groupName minReplicas maxReplicas template",
                    flag="suspend",
                    text="groupName",
                    number="replicas minReplicas maxReplicas idleTimeoutSeconds numOfHosts",
                    params="rayStartParams",
                    any="template scaleStrategy",
                ),
            },
        ),
    ),
)
"""The fields of `ray.io/v1`, from KubeRay's API reference; Kubernetes' schema checks the pods."""


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def cluster() -> dict[str, Any]:
    return documents()[0]["spec"]["rayClusterConfig"]


def pods() -> list[dict[str, Any]]:
    groups = [cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def deployed() -> tuple[dict[str, Any], ClusterConfig]:
    """The Ray Serve configuration in it, and that configuration's application."""
    content = yaml.safe_load(documents()[0]["spec"]["serveConfigV2"])
    return content, parse(content["applications"][0]["args"])


def as_files(folder: Path, specs: list[dict[str, Any]]) -> list[Path]:
    """The pods and the claim, each as a separate manifest."""
    made = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "test"}, "spec": spec}
        for spec in specs
    ]
    paths = []
    for number, content in enumerate([*made, documents()[1]]):
        paths.append(folder / f"{number}.yaml")
        paths[-1].write_text(yaml.safe_dump(content))
    return paths


def test_the_manifest_has_the_fields_of_a_rayservice() -> None:
    jsonschema.validate(documents()[0], SCHEMA)


def test_the_schema_detects_a_mistake() -> None:
    broken = copy.deepcopy(documents()[0])
    broken["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(broken, SCHEMA)


def test_the_schema_of_kubernetes_accepts_its_pods_and_its_claim(tmp_path: Path) -> None:
    command = (tool("kubernetes-validate"), "-k", "1.34", "--strict", *as_files(tmp_path, pods()))
    assert passes(*command).count("passed") == 3


def test_the_schema_of_kubernetes_detects_a_mistake_in_a_pod(tmp_path: Path) -> None:
    spec = {**pods()[0], "volume": []}
    done = run(tool("kubernetes-validate"), "--strict", as_files(tmp_path, [spec])[0])
    assert done.returncode != 0


def test_it_deploys_what_the_command_prints() -> None:
    content, config = deployed()
    assert serve_config(config) == content


def test_its_nodes_have_room_for_its_replicas() -> None:
    _, config = deployed()
    (group,) = cluster()["workerGroupSpecs"]
    cpus = group["maxReplicas"] * int(group["rayStartParams"]["num-cpus"])
    needed = sum(model.scale.max_replicas * model.scale.cpus for model in config.models)
    assert needed + config.ingress.max_replicas * config.ingress.cpus <= cpus
    assert pods()[1]["terminationGracePeriodSeconds"] > config.server.shutdown_timeout


def test_ray_accepts_what_it_deploys() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs the extra `ray`")
    content, _ = deployed()
    schema.ServeDeploySchema.model_validate(content)
