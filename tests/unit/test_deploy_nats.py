"""What is in deploy/kubernetes/nats, where replicas share an outbox on NATS JetStream."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from service.config.role import Role
from service.config.settings import Settings, load_settings
from service.mapping.mapping_file import load_mapping
from service.outbox.jetstream.streams import MIN_MESSAGE_SIZE
from service.server.health import LIVENESS
from tests.support.certificates import OPENSSL, make_authority, make_certificate
from tests.support.monitoring import JOB
from tests.unit.test_deploy import DOCKERFILE, KUBERNETES, KUBERNETES_OLDEST, documents, run, tool, variables

NATS: Final = KUBERNETES / "nats"
SETTINGS: Final = f"{JOB}-nats"
SERVER: Final = Path(sys.executable).parent / "nats-server"
ROLES: Final = pytest.mark.parametrize("role", [Role.ACCEPT, Role.RELAY])


def kustomization() -> dict[str, Any]:
    """What kustomize is told."""
    return documents(NATS / "kustomization.yaml")[0]


def resources() -> list[dict[str, Any]]:
    """What the manifests make, but for what kustomize makes itself."""
    return [document for name in kustomization()["resources"] for document in documents(NATS / name)]


def resource(kind: str, name: str) -> Any:
    """The one of this kind and name."""
    (found,) = [it for it in resources() if it["kind"] == kind and it["metadata"]["name"] == name]
    return found


def deployment(role: Role) -> Any:
    """The Deployment of the pods of a role."""
    return resource("Deployment", f"{JOB}-{role}")["spec"]


def pod(role: Role) -> Any:
    """A pod of a role."""
    return deployment(role)["template"]["spec"]


def pod_environment() -> dict[str, str]:
    """What the pods of both roles are given."""
    (literals,) = [it["literals"] for it in kustomization()["configMapGenerator"] if it["name"] == SETTINGS]
    return dict(literal.split("=", 1) for literal in literals)


def pod_settings(folder: Path) -> Settings:
    """The settings that the pods have: the image's, and their own."""
    image = dict(re.findall(r"\b(POINTILLIST_\w+)=(\S+)", DOCKERFILE))
    return load_settings(variables(image | pod_environment(), folder))


def test_kubernetes_would_take_the_manifests() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is a development dependency")
    for version in (KUBERNETES_OLDEST, str(validate.latest_version())):
        for it in resources():
            if it["kind"] != "ServiceMonitor":  # of the Prometheus operator, whose schema is not Kubernetes'
                validate.validate(it, version, strict=True)


def test_kustomize_gives_the_pods_their_settings_the_image_and_the_mapping() -> None:
    made = documents_of(run(tool("kubectl", "kubernetes-client"), "kustomize", NATS))
    maps = {it["metadata"]["name"]: it["data"] for it in made if it["kind"] == "ConfigMap"}
    assert maps[f"{JOB}-mapping"]["mapping.toml"] == (NATS / "mapping.toml").read_text()
    deployments = [it["spec"]["template"]["spec"] for it in made if it["kind"] == "Deployment"]
    assert len(deployments) == 2
    for spec in deployments:
        (container,) = spec["containers"]
        (source,) = container["envFrom"]
        assert maps[source["configMapRef"]["name"]] == pod_environment()
        assert re.fullmatch(r".+:\d+\.\d+\.\d+", container["image"])


def documents_of(text: str) -> list[dict[str, Any]]:
    """The documents of YAML."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is a development dependency")
    return [document for document in yaml.safe_load_all(text) if document]


@ROLES
def test_the_pods_of_a_role_run_it_with_settings_that_can_be_used(role: Role, tmp_path: Path) -> None:
    # given
    (container,) = pod(role)["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}

    # then
    assert container["args"] == ["serve", "--role", role]
    settings = pod_settings(tmp_path)
    assert settings.nats_servers is not None
    assert settings.nats_servers.is_tls
    files = {name: value for name, value in pod_environment().items() if name.endswith("_FILE")}
    assert {str(Path(value).parent) for value in files.values()} == set(mounts.values())
    assert set(mounts) == {volume["name"] for volume in pod(role)["volumes"]}


def test_each_relay_takes_the_share_that_their_number_leaves_it(tmp_path: Path) -> None:
    assert pod_settings(tmp_path).relay_replicas == deployment(Role.RELAY)["replicas"]
    assert deployment(Role.RELAY)["strategy"]["rollingUpdate"]["maxSurge"] == 0


@ROLES
def test_the_pods_of_a_role_are_given_the_time_that_their_shutdown_takes(role: Role, tmp_path: Path) -> None:
    settings = pod_settings(tmp_path)
    assert settings.shutdown_delay == 5
    assert pod(role)["terminationGracePeriodSeconds"] >= settings.shutdown_delay + settings.shutdown_grace + 5


@ROLES
def test_probes_ask_health_by_names_that_the_role_has_on_the_port_without_tls(role: Role, tmp_path: Path) -> None:
    # given
    (container,) = pod(role)["containers"]
    settings = pod_settings(tmp_path)
    listens = {"grpc": settings.grpc_listen, "metrics": settings.metrics_listen, "health": settings.health_listen}
    ports = {name: listen.port for name, listen in listens.items() if listen is not None}

    # then
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    alive = {"port": ports["health"], "service": LIVENESS}
    assert container["startupProbe"]["grpc"] == container["livenessProbe"]["grpc"] == alive
    ready: dict[str, object] = {"port": ports["health"]}
    if role is Role.ACCEPT:
        ready["service"] = "pointillist_destination.v1.EventService"
    assert container["readinessProbe"]["grpc"] == ready


@ROLES
def test_the_pods_of_a_role_may_do_nothing_that_they_need_not(role: Role) -> None:
    spec = pod(role)
    (container,) = spec["containers"]
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in DOCKERFILE
    assert (spec["securityContext"]["fsGroup"], spec["securityContext"]["runAsNonRoot"]) == (10001, True)
    assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "persistentVolumeClaim" not in {key for volume in spec["volumes"] for key in volume}


@ROLES
def test_whatever_selects_pods_selects_those_of_its_role(role: Role) -> None:
    # given
    labels = deployment(role)["template"]["metadata"]["labels"]
    ports = {port["name"] for port in pod(role)["containers"][0]["ports"]}

    # then
    assert deployment(role)["selector"]["matchLabels"] == labels
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert resource(kind, f"{JOB}-{role}")["spec"][key]["matchLabels"] == labels
    policy = resource("NetworkPolicy", f"{JOB}-{role}")["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= ports
    reached = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert reached == ({53, 4222, 8222} if role is Role.ACCEPT else {53, 4222, 8222, 443})
    calls = [resource("Service", JOB), resource("Service", f"{JOB}-headless")]
    for service in calls:
        assert service["spec"]["selector"] == labels | {"app.kubernetes.io/component": Role.ACCEPT}
    assert resource("Service", f"{JOB}-metrics")["spec"]["selector"].items() < labels.items()


def test_the_autoscaler_scales_what_takes_events_in_and_nothing_else_says_how_many() -> None:
    scaler = resource("HorizontalPodAutoscaler", f"{JOB}-accept")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{JOB}-accept"}
    assert "replicas" not in deployment(Role.ACCEPT)
    assert "cpu" in pod(Role.ACCEPT)["containers"][0]["resources"]["requests"]


def test_prometheus_operator_finds_one_service_and_calls_its_job_as_the_alerts_do() -> None:
    monitor = resource("ServiceMonitor", JOB)["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    (service,) = [it for it in resources() if it["kind"] == "Service" and wanted <= it["metadata"]["labels"].items()]
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} == {it["name"] for it in service["spec"]["ports"]}
    assert service["metadata"]["labels"][monitor["jobLabel"]] == JOB


def test_the_mapping_that_is_shipped_is_the_built_in_one() -> None:
    shipped = load_mapping(NATS / "mapping.toml").describe()
    assert shipped == load_mapping(None).describe(), (
        "copy service/mapping/mapping.toml to deploy/kubernetes/nats/mapping.toml"
    )


def test_the_manifests_name_the_version_that_the_others_do() -> None:
    assert kustomization()["images"] == documents(KUBERNETES / "kustomization.yaml")[0]["images"]


@pytest.mark.skipif(OPENSSL is None, reason="openssl is missing; Debian's openssl has it")
def test_nats_server_takes_the_configuration(tmp_path: Path) -> None:
    # given the certificate that it names
    pair = make_certificate(tmp_path, "nats", make_authority(tmp_path, "authority"))
    text = (NATS / "nats.conf").read_text()
    text = text.replace("/etc/nats/tls/tls.crt", str(pair.certificate)).replace("/etc/nats/tls/tls.key", str(pair.key))
    (tmp_path / "nats.conf").write_text(text)

    # when
    done = subprocess.run(
        [SERVER, "-t", "-c", tmp_path / "nats.conf"], capture_output=True, text=True, check=False, timeout=60
    )

    # then
    assert done.returncode == 0, done.stderr


def test_nats_is_set_up_so_that_events_fit_and_an_ok_means_on_disk(tmp_path: Path) -> None:
    text = (NATS / "nats.conf").read_text()
    assert re.search(r"^  sync_interval: always$", text, re.MULTILINE)
    most = re.search(r"^max_payload: (\d+)MB$", text, re.MULTILINE)
    assert most is not None
    assert int(most[1]) * 1024**2 >= MIN_MESSAGE_SIZE
    room = re.search(r"^  max_file_store: (\d+)GB$", text, re.MULTILINE)
    assert room is not None
    assert int(room[1]) * 1024**3 > pod_settings(tmp_path).outbox_max_bytes
    assert len(re.findall(r"nats://nats-\d", text)) == pod_settings(tmp_path).nats_replicas
