"""Container, compose, systemd and Kubernetes files are valid, and agree with the server."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.deploy.tools import DEPLOY, passes, run, tool
from vox_serve.config import ServerConfig
from vox_serve.launch import parser
from vox_serve.server.routes import status

ROOT = DEPLOY.parent
DOCKERFILE = DEPLOY / "container" / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
UNIT = DEPLOY / "systemd" / "vox-serve.service"
KUBERNETES = DEPLOY / "kubernetes" / "vox-serve.yaml"
LOCKS = ("lock.txt", "lock-cuda.txt")
ENTRYPOINT = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE.read_text(), re.M)[0])


def manifest(kind: str) -> dict:
    (found,) = (one for one in yaml.safe_load_all(KUBERNETES.read_text()) if one["kind"] == kind)
    return found


def container() -> dict:
    (found,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    return found


# The container


def test_the_linter_finds_nothing_in_the_container_file() -> None:
    passes(tool("hadolint"), DOCKERFILE)


def test_the_linter_detects_a_mistake() -> None:
    broken = DOCKERFILE.read_text().replace(" --no-install-recommends", "")
    assert "DL3015" in run(tool("hadolint"), "-", text=broken).stdout


def test_the_container_file_copies_existing_files() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.M)
    assert len(copied) == 6
    assert all((ROOT / path).exists() for line in copied for path in line.split())


def test_no_target_runs_as_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.M)
    for target in ("cpu", "cuda"):
        (stage,) = (text for text in stages if text.startswith(f"common AS {target}\n"))
        assert stage.rstrip().splitlines()[-1] == "USER 10001:10001"


@pytest.mark.parametrize("name", [*LOCKS, "lock-build.txt"])
def test_every_locked_package_has_its_hash_and_its_licence(name: str) -> None:
    header, *lines = (DOCKERFILE.parent / name).read_text().splitlines()
    assert header == "# Made by: python -m deploy.container.lock"
    assert lines
    for line in lines:
        assert re.fullmatch(
            r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}  # (?!see its)\S.*", line
        ), line


def test_the_locked_versions_satisfy_the_projects() -> None:
    """Every requirement of a project is locked, too."""
    text = "".join((DOCKERFILE.parent / name).read_text() for name in LOCKS)
    locked = dict(re.findall(r"^(\S+)==(\S+)", text, re.M))
    for project in (ROOT, *(ROOT / "plugins").iterdir()):
        if not (project / "pyproject.toml").exists():
            continue
        for line in tomllib.loads((project / "pyproject.toml").read_text())["project"][
            "dependencies"
        ]:
            wanted = Requirement(line)
            if not wanted.name.startswith("vox-serve"):
                assert locked[wanted.name] in wanted.specifier, line


# Compose


def test_compose_follows_its_schema() -> None:
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_the_schema_of_compose_detects_a_mistake(tmp_path: Path) -> None:
    broken = yaml.safe_load(COMPOSE.read_text())
    broken["services"]["vox-serve"]["read_onyl"] = True
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(broken))
    done = run(
        tool("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        tmp_path / "compose.yaml",
    )
    assert done.returncode != 0
    assert "read_onyl" in done.stdout


def test_compose_mounts_existing_files_and_scrapes_its_own_server() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    mounts = [m.split(":")[0] for service in services.values() for m in service["volumes"]]
    assert all((COMPOSE.parent / mount).is_dir() for mount in mounts if mount.startswith("."))
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in services
    sources = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    url = yaml.safe_load(sources.read_text())["datasources"][0]["url"]
    assert url.removeprefix("http://").split(":")[0] in services


# systemd


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, changed to start a program that exists here."""
    text = UNIT.read_text()
    assert "/opt/vox-serve/bin/vox-serve launch" in text
    path = tmp_path / UNIT.name
    path.write_text(text.replace("/opt/vox-serve/bin/vox-serve launch", "/bin/true launch"))
    return path


@needs_systemd
def test_systemd_accepts_the_unit(unit: Path) -> None:
    assert passes("systemd-analyze", "verify", unit) == ""


@needs_systemd
def test_systemd_detects_a_mistake_in_a_unit(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHoem=yes"))
    assert "ProtectHoem" in run("systemd-analyze", "verify", unit).stdout


@needs_systemd
def test_the_unit_exposes_little(unit: Path) -> None:
    said = passes("systemd-analyze", "security", "--offline=true", unit)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert exposure
    assert float(exposure[1]) <= 2.0  # of 10


# Kubernetes


def test_kubernetes_accepts_the_manifests() -> None:
    for version in ("1.27", "1.31", "1.34"):
        command = (tool("kubernetes-validate"), "-k", version, "--strict", KUBERNETES)
        assert passes(*command).count("passed") == 5


def test_the_schema_of_manifests_detects_a_mistake(tmp_path: Path) -> None:
    broken = KUBERNETES.read_text().replace("readinessProbe:", "readynessProbe:")
    (tmp_path / "broken.yaml").write_text(broken)
    done = run(tool("kubernetes-validate"), "--strict", tmp_path / "broken.yaml")
    assert done.returncode != 0
    assert "readynessProbe" in done.stdout


def test_the_probes_request_routes_that_exist() -> None:
    paths = {
        name: container()[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/ready", "liveness": "/health", "readiness": "/ready"}
    assert {path for route in (status.health, status.ready) for path in route.paths} == {
        "/health",
        "/ready",
    }


def test_the_pod_runs_as_the_containers_user_on_a_read_only_root() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    user = re.findall(r"^USER (\d+):", DOCKERFILE.read_text(), re.M)
    assert {str(pod["securityContext"]["runAsUser"])} == set(user)
    assert container()["securityContext"]["readOnlyRootFilesystem"]


# All of them


def test_each_starts_the_server_with_existing_flags() -> None:
    program, verb, *own = ENTRYPOINT
    assert (program, verb) == ("vox-serve", "launch")
    command = re.findall(r"^ExecStart=\S+ launch (.*)\$FLAGS$", UNIT.read_text(), re.M)
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["vox-serve"]["command"]
    for flags in (own + container()["args"], own + compose, command[0].split()):
        parser("test").parse_args(flags)


def test_each_waits_longer_than_draining_may_take() -> None:
    drain = ServerConfig().shutdown_timeout
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    stop = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.M)
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["vox-serve"]["stop_grace_period"]
    assert pod["terminationGracePeriodSeconds"] > drain + stop + 2
    assert int(unit) > drain + 2
    assert int(compose.rstrip("s")) > drain + 2
