"""What is in deploy/, looked at by the real tools where they are there, and by what the service itself says."""

import asyncio
import importlib.metadata
import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from service.config.settings import Settings, load_settings
from service.config.units import parse_duration
from service.mapping.mapping_file import load_mapping
from service.outbox.sqlite.opening import APPLICATION_ID, SCHEMA_VERSION
from service.sandbox.server import Sandbox
from service.server.health import LIVENESS
from tests.support.commands import call
from tests.support.monitoring import ALERTS, DASHBOARD, JOB, filled, metric_names, panels
from tests.support.paths import DEPLOY, PROJECT
from tests.support.processes import environment
from tests.support.sandboxes import TOKEN, running_sandbox
from tests.support.server_processes import ServerProcess, settings_for

yaml = pytest.importorskip("yaml", reason="PyYAML is a development dependency")

ALERTS_TEST: Final = DEPLOY / "prometheus" / "alerts_test.yaml"
KUBERNETES: Final = DEPLOY / "kubernetes"
TLS: Final = DEPLOY / "kubernetes-tls"
UNIT: Final = DEPLOY / "systemd" / "pointillist-destination.service"
RUNBOOK: Final = PROJECT / "docs" / "runbook.md"
DOCKERFILE: Final = (PROJECT / "Dockerfile").read_text()

MAX_EXPOSURE: Final = "20"  # tenths, as systemd-analyze's threshold has them
KUBERNETES_OLDEST: Final = "1.27"  # the first in which probes may speak gRPC without a feature gate
PROMETHEUS_METRICS: Final = {"up", "ALERTS"}  # made by Prometheus itself


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def tool(name: str, package: str) -> str:
    """Where a tool is; the test is skipped where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing; {package} has it")
    return found


def run(*command: str | Path) -> str:
    """Run a tool; it has to be content."""
    done = subprocess.run(
        [str(word) for word in command], cwd=PROJECT, text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- what alerts and the dashboard ask


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by their names."""
    rules = [rule for group in documents(ALERTS)[0]["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule for rule in rules}


def dashboard_queries() -> list[str]:
    """What the panels ask, with Grafana's own variables filled in."""
    return [filled(target["expr"], "1m") for panel in panels() for target in panel["targets"]]


async def test_dashboard_alerts_and_run_book_name_metrics_that_a_server_serves(tmp_path: Path) -> None:
    # given what a server serves
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    callers = tmp_path / "callers.toml"
    callers.write_text(f'[callers.checkout]\nsha256 = "{"0" * 64}"\n')
    server = await ServerProcess.start(settings_for(tmp_path / "outbox.db", sandbox, callers_file=str(callers)))
    served = await server.metrics()
    await server.stop()
    await sandbox.stop()

    # then every name that is asked for is among them
    ours = {name.partition("{")[0] for name in served}
    known = ours | {f"pointillist_destination_{name}" for name in ours} | PROMETHEUS_METRICS
    queries = dashboard_queries() + [rule["expr"] for rule in alerts().values()]
    asked = set().union(*map(metric_names, queries))
    asked |= set(re.findall(r"\b(?:pointillist_destination|grpc_server|process)_\w+", RUNBOOK.read_text()))
    assert asked - known == set()
    assert len(asked) > 25


def test_each_panel_says_what_it_shows() -> None:
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all("$instance" in target["expr"] for target in panel["targets"]), panel["title"]


def test_no_two_panels_lie_over_each_other() -> None:
    every = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in every)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in every}) == len(every)


def test_prometheus_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    promtool = tool("promtool", "Debian's prometheus")
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(dashboard_queries())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", file)


def test_prometheus_takes_its_configuration_and_the_alerts() -> None:
    run(tool("promtool", "Debian's prometheus"), "check", "config", DEPLOY / "prometheus" / "prometheus.yaml")


def test_the_alerts_fire_when_they_should() -> None:
    run(tool("promtool", "Debian's prometheus"), "test", "rules", ALERTS_TEST)


def test_each_alert_is_seen_to_fire_by_a_test() -> None:
    cases = [case for test in documents(ALERTS_TEST)[0]["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts())


def test_each_alert_has_its_chapter_in_the_run_book_and_no_chapter_is_left_over() -> None:
    chapters = set(re.findall(r"^### (Pointillist\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert chapters == set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_numbers_in_the_alerts_are_the_defaults_of_the_settings() -> None:
    settings = load_settings({})
    assert (settings.outbox_max_bytes, settings.max_age) == (10 * 1024**3, 7 * 86400)
    assert settings.dead_letter_max_events == 1_000_000
    for name in ("OutboxFilling", "OutboxFull"):
        assert "10 * 1024 ^ 3" in alerts()[f"PointillistDestination{name}"]["expr"]
    assert "0.8 * 1000000" in alerts()["PointillistDestinationDeadLettersNearQuota"]["expr"]
    assert "(7 - 1) * 86400" in alerts()["PointillistDestinationEventsNearMaxAge"]["expr"]


# -- Kubernetes


def resources() -> list[dict[str, Any]]:
    """What the manifests make, but for the ConfigMap that kustomize makes of a file."""
    listed = documents(KUBERNETES / "kustomization.yaml")[0]["resources"]
    return [document for name in listed for document in documents(KUBERNETES / name)]


def resource(kind: str, name: str = JOB) -> Any:
    """The one of this kind and name."""
    (found,) = [it for it in resources() if it["kind"] == kind and it["metadata"]["name"] == name]
    return found


def pod() -> Any:
    """The pod that the StatefulSet makes."""
    return resource("StatefulSet")["spec"]["template"]["spec"]


def variables(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """An environment whose files are in `folder`, as the settings insist that a file be there."""
    found = {}
    for name, value in environment.items():
        if name.endswith("_FILE"):
            file = folder / Path(value).name
            file.write_text("token")
            found[name] = str(file)
        else:
            found[name] = value
    return found


def pod_settings(folder: Path) -> Settings:
    """The settings that the pod has: the image's, and its own."""
    image = dict(re.findall(r"\b(POINTILLIST_\w+)=(\S+)", DOCKERFILE))
    own = {variable["name"]: variable["value"] for variable in pod()["containers"][0]["env"]}
    return load_settings(variables(image | own, folder))


def test_kubernetes_would_take_the_manifests() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is a development dependency")
    for version in (KUBERNETES_OLDEST, str(validate.latest_version())):
        for it in resources():
            if it["kind"] != "ServiceMonitor":  # of the Prometheus operator, whose schema is not Kubernetes'
                validate.validate(it, version, strict=True)


def test_kustomize_makes_manifests_of_the_folder() -> None:
    made = list(yaml.safe_load_all(run(tool("kubectl", "kubernetes-client"), "kustomize", KUBERNETES)))
    (mapping,) = [it for it in made if it["kind"] == "ConfigMap"]
    assert mapping["data"]["mapping.toml"] == (KUBERNETES / "mapping.toml").read_text()
    (stateful,) = [it for it in made if it["kind"] == "StatefulSet"]
    spec = stateful["spec"]["template"]["spec"]
    assert mapping["metadata"]["name"] in [volume.get("configMap", {}).get("name") for volume in spec["volumes"]]
    assert re.fullmatch(r".+:\d+\.\d+\.\d+", spec["containers"][0]["image"])


def test_kustomize_adds_tls_and_callers_to_the_pod_and_takes_nothing_away() -> None:
    made = list(yaml.safe_load_all(run(tool("kubectl", "kubernetes-client"), "kustomize", TLS)))
    (stateful,) = [it for it in made if it["kind"] == "StatefulSet"]
    with_tls, plain = stateful["spec"]["template"]["spec"], pod()
    names = {variable["name"] for variable in with_tls["containers"][0]["env"]}
    assert names >= {variable["name"] for variable in plain["containers"][0]["env"]} | {"POINTILLIST_CALLERS_FILE"}
    assert {volume["name"] for volume in with_tls["volumes"]} == {
        *(volume["name"] for volume in plain["volumes"]),
        *("tls", "callers"),
    }


def test_the_pod_has_settings_that_can_be_used(tmp_path: Path) -> None:
    settings = pod_settings(tmp_path)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod()["containers"][0]["volumeMounts"]}
    assert str(settings.outbox_path.parent) == mounts["outbox"]
    own = {variable["name"]: variable["value"] for variable in pod()["containers"][0]["env"]}
    assert own["POINTILLIST_API_TOKEN_FILE"] == f"{mounts['token']}/token"
    assert own["POINTILLIST_MAPPING_FILE"] == f"{mounts['mapping']}/mapping.toml"


def test_the_overlay_with_tls_has_settings_that_can_be_used_and_mounts_what_they_name(tmp_path: Path) -> None:
    # given
    [patch] = documents(TLS / "statefulset.yaml")
    spec = patch["spec"]["template"]["spec"]
    [container] = spec["containers"]
    own = {variable["name"]: variable["value"] for variable in container["env"]}

    # then
    settings = load_settings(variables(own, tmp_path))
    named = (settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file, settings.callers_file)
    assert None not in named
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume["secret"] for volume in spec["volumes"]}
    for path in own.values():
        assert volumes[mounts[str(Path(path).parent)]]["defaultMode"] == 0o440
    how = (TLS / "kustomization.yaml").read_text()
    assert all(f"secret generic {volume['secretName']} " in how for volume in volumes.values())
    assert all(f"--from-file={Path(path).name}=" in how for path in own.values())


def test_the_pod_is_given_the_time_that_its_shutdown_takes(tmp_path: Path) -> None:
    settings = pod_settings(tmp_path)
    assert settings.shutdown_delay == 5
    assert pod()["terminationGracePeriodSeconds"] >= settings.shutdown_delay + settings.shutdown_grace + 5


def test_probes_ask_health_by_the_right_names_on_the_port_without_tls(tmp_path: Path) -> None:
    container, settings = pod()["containers"][0], pod_settings(tmp_path)
    listens = {"grpc": settings.grpc_listen, "metrics": settings.metrics_listen, "health": settings.health_listen}
    ports = {name: listen.port for name, listen in listens.items() if listen is not None}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    alive = {"port": ports["health"], "service": LIVENESS}
    assert container["startupProbe"]["grpc"] == container["livenessProbe"]["grpc"] == alive
    ready = {"port": ports["health"], "service": "pointillist_destination.v1.EventService"}
    assert container["readinessProbe"]["grpc"] == ready


def test_the_pod_may_do_nothing_that_it_need_not() -> None:
    spec, container = pod(), pod()["containers"][0]
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in DOCKERFILE
    assert (spec["securityContext"]["fsGroup"], spec["securityContext"]["runAsNonRoot"]) == (10001, True)
    assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_whatever_selects_pods_selects_these() -> None:
    stateful = resource("StatefulSet")
    labels = stateful["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"] for port in pod()["containers"][0]["ports"]}
    services = [resource("Service"), resource("Service", stateful["spec"]["serviceName"])]
    assert services[1]["spec"]["clusterIP"] == "None"
    for service in services:
        assert service["spec"]["selector"].items() <= labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert resource(kind)["spec"][key]["matchLabels"].items() <= labels
    assert stateful["spec"]["selector"]["matchLabels"].items() <= labels
    allowed = [port["port"] for rule in resource("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert set(allowed) <= ports


def test_prometheus_operator_finds_one_service_and_calls_its_job_as_the_alerts_do() -> None:
    monitor = resource("ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    (service,) = [it for it in resources() if it["kind"] == "Service" and wanted <= it["metadata"]["labels"].items()]
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= {it["name"] for it in service["spec"]["ports"]}
    assert service["metadata"]["labels"][monitor["jobLabel"]] == JOB
    assert f'up{{job="{JOB}"}}' in alerts()["PointillistDestinationDown"]["expr"]


def test_the_mapping_that_is_shipped_is_the_built_in_one() -> None:
    shipped = load_mapping(KUBERNETES / "mapping.toml").describe()
    assert shipped == load_mapping(None).describe(), (
        "copy service/mapping/mapping.toml to deploy/kubernetes/mapping.toml"
    )


# -- the image


def build_tools() -> set[str]:
    """The distributions that the image's last stages do without."""
    found = re.findall(r"pip uninstall --yes (hatchling[^\n\\]*)", DOCKERFILE)
    assert len(set(found)) == 1
    return set(found[0].split())


def test_the_image_has_no_build_tools_and_nothing_in_it_needs_them() -> None:
    # given
    locked = set(re.findall(r"^([a-z0-9-]+)==", (PROJECT / "requirements.lock").read_text(), re.MULTILINE))
    removed = build_tools()

    # then
    assert removed - {"pip"} <= locked
    for name in sorted(locked - removed):
        try:
            wants = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform or Python
            continue
        needed = {re.split(r"[^A-Za-z0-9._-]", want)[0].lower() for want in wants if "extra ==" not in want}
        assert not needed & removed, f"{name} needs {needed & removed}"


@pytest.mark.long  # it runs make, and a tool that takes seconds
def test_the_bill_of_materials_has_every_locked_distribution_and_no_path_of_this_machine() -> None:
    # when
    run(tool("make", "make"), "-C", PROJECT, "sbom")

    # then
    text = (PROJECT / "build" / "sbom.cdx.json").read_text()
    made = {(part["name"].lower(), part["version"]) for part in json.loads(text)["components"]}
    lock = (PROJECT / "requirements.lock").read_text()
    assert made == set(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", lock, re.MULTILINE))
    assert str(PROJECT) not in text


def test_the_image_has_what_traces_and_nats_need() -> None:
    locked = (PROJECT / "requirements.lock").read_text()
    for name in ("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk", "nats-py"):
        assert re.search(f"^{name}==", locked, re.MULTILINE)


# -- systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, for a program that is there on this machine."""
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text(), flags=re.MULTILINE)
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


def test_systemd_takes_the_unit(unit: Path) -> None:
    done = run(tool("systemd-analyze", "Debian's systemd"), "verify", unit)
    assert UNIT.name not in done


def test_the_unit_is_not_much_exposed(unit: Path) -> None:
    analyze = tool("systemd-analyze", "Debian's systemd")
    if "--offline" not in run(analyze, "--help"):
        pytest.skip("this systemd-analyze cannot look at a unit that is not installed; 250 and newer can")
    run(analyze, "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", unit)


def test_the_unit_sets_what_is_a_setting_and_leaves_time_to_stop(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("%S", "/var/lib").replace("%d", "/run/credentials")
    settings = load_settings(variables(dict(re.findall(r"\b(POINTILLIST_\w+)=(\S+)", text)), tmp_path))
    assert str(settings.outbox_path) == "/var/lib/pointillist-destination/outbox.db"
    stop = re.search(r"^TimeoutStopSec=(\w+)$", text, re.MULTILINE)
    assert stop is not None
    assert parse_duration(stop[1]) >= settings.shutdown_delay + settings.shutdown_grace + 5


# -- compose


COMPOSE: Final = documents(DEPLOY / "compose.yaml")[0]


def test_compose_pins_the_version_of_every_image_and_mounts_what_is_there() -> None:
    for service in COMPOSE["services"].values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_compose_gives_the_service_settings_that_fit_the_sandbox() -> None:
    service, sandbox = COMPOSE["services"][JOB], COMPOSE["services"]["sandbox"]
    settings = load_settings(service["environment"])
    assert settings.api_url == "http://sandbox:8080/event"
    assert settings.api_token is not None
    assert {settings.api_token.get_secret_value(), "0.0.0.0:8080"} <= set(sandbox["command"])
    assert parse_duration(service["stop_grace_period"]) > settings.shutdown_delay + settings.shutdown_grace


async def test_the_health_check_of_the_sandbox_asks_no_proxy() -> None:
    # given a sandbox, and a proxy at which nobody answers
    async with running_sandbox() as sandbox:
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            url = f"http://127.0.0.1:{proxy.getsockname()[1]}"

            # when
            _, _, option, code = COMPOSE["services"]["sandbox"]["healthcheck"]["test"]
            code = code.replace("8080", str(sandbox.address[1]))
            environ = environment({"http_proxy": url, "HTTP_PROXY": url, "NO_PROXY": "", "no_proxy": ""})
            process = await asyncio.create_subprocess_exec(sys.executable, option, code, env=environ)

            # then
            assert await process.wait() == 0


def test_prometheus_in_compose_scrapes_the_service_under_the_name_that_the_alerts_know() -> None:
    (scraped,) = documents(DEPLOY / "prometheus" / "prometheus.yaml")[0]["scrape_configs"]
    assert scraped == {"job_name": JOB, "static_configs": [{"targets": [f"{JOB}:9464"]}]}
    assert "POINTILLIST_METRICS_LISTEN=0.0.0.0:9464" in DOCKERFILE


def test_grafana_in_compose_finds_the_dashboard_and_prometheus() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    (provider,) = documents(provisioning / "dashboards" / "pointillist-destination.yaml")[0]["providers"]
    assert mounts["./grafana/dashboard.json"] == f"{provider['options']['path']}/dashboard.json"
    (source,) = documents(provisioning / "datasources" / "prometheus.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"


# -- the run-book and the version


def test_the_manifests_name_the_version_of_the_project() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    (image,) = documents(KUBERNETES / "kustomization.yaml")[0]["images"]
    assert image["newTag"] == version
    assert COMPOSE["services"][JOB]["image"] == f"{JOB}:{version}"
    assert COMPOSE["services"]["sandbox"]["image"] == f"{JOB}-sandbox:{version}"


def test_the_run_book_marks_a_saved_outbox_as_the_service_does() -> None:
    assert f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};" in RUNBOOK.read_text()


def test_the_run_book_names_settings_and_files_that_there_are() -> None:
    text = RUNBOOK.read_text()
    settings = {f"POINTILLIST_{name.upper()}" for name in Settings.model_fields} | {"POINTILLIST_CONFIG_FILE"}
    assert set(re.findall(r"\bPOINTILLIST_[A-Z_]+[A-Z]", text)) <= settings
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (RUNBOOK.parent / link).exists(), link


def test_the_run_book_names_commands_that_there_are() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    named = {
        match
        for block in blocks
        for match in re.findall(r"pointillist-destination ((?:[a-z][a-z-]*)(?: [a-z]+)?)", block)
    }
    assert {"doctor", "dead-letters list", "dead-letters replay"} <= named
    for words in named & {"doctor", "dead-letters list", "dead-letters show", "dead-letters replay", "mapping check"}:
        assert "Usage" in call(*words.split(), "--help").out
