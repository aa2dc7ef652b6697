from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.app.cli.cluster import Busy, Refused
from shoal.v1 import clusterer_pb2, embedder_pb2, search_pb2

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
SERVICES = {
    "embedder": embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name,
    "clusterer": clusterer_pb2.DESCRIPTOR.services_by_name["ClustererService"].full_name,
    "search": search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name,
}
DAY_S = 24 * 3600

Document = dict[str, Any]
Workloads = list[tuple[Document, Document]]
"""Each workload with its pod template."""


def of_kind(manifests: list[Document], kind: str) -> dict[str, Document]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Kubernetes' rule for label selectors, as far as it is used here."""
    wanted = selector.get("matchLabels", {}).items()
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return wanted <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def port_of(container: Document, name: str) -> int:
    (port,) = [each["containerPort"] for each in container["ports"] if each["name"] == name]
    return int(port)


def test_workloads_are_the_services_the_store_and_the_schedule(workloads: Workloads) -> None:
    """There are three services, the store and the reclustering, of the kinds that suit them."""
    assert {(each["kind"], each["metadata"]["name"]) for each, _ in workloads} == {
        *(("Deployment", name) for name in SERVICES),
        ("StatefulSet", "qdrant"),
        ("CronJob", "recluster"),
    }


def test_pods_run_without_privileges(workloads: Workloads) -> None:
    """Not root, read-only root, no capabilities, the default seccomp filter, no API token."""
    for _, template in workloads:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_pods_run_as_the_user_of_their_image(workloads: Workloads, targets: Any) -> None:
    """The user of the pod is the one that the Dockerfile made."""
    for _, template in workloads:
        for container in template["spec"]["containers"]:
            if container["image"].startswith("shoal/"):
                target = container["image"].removeprefix("shoal/").partition(":")[0]
                context = template["spec"]["securityContext"]
                user = f"{context['runAsUser']}:{context['runAsGroup']}"
                assert user == targets[target].values("USER")[-1]


def test_pods_get_no_service_links(workloads: Workloads) -> None:
    """No variable that Kubernetes invents can be read as an option's environment twin."""
    assert all(template["spec"]["enableServiceLinks"] is False for _, template in workloads)


def test_containers_say_what_they_need(workloads: Workloads) -> None:
    """Requests of CPU and memory, and a limit of memory no smaller than its request."""
    units = {"Mi": 2**20, "Gi": 2**30}
    for _, template in workloads:
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"}
            sizes = [resources[kind]["memory"] for kind in ("requests", "limits")]
            least, most = (int(size[:-2]) * units[size[-2:]] for size in sizes)
            assert least <= most


def test_servers_have_three_probes(workloads: Workloads) -> None:
    """What serves has a startup, a liveness and a readiness probe, with a time limit each."""
    for workload, template in workloads:
        for container in template["spec"]["containers"]:
            if workload["kind"] != "CronJob":
                for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                    assert container[kind]["timeoutSeconds"] > 0


@pytest.mark.parametrize("name", SERVICES)
def test_readiness_is_the_services_own_health(workloads: Workloads, name: str) -> None:
    """Readiness is grpc.health.v1 of the one service that the pod is for, on its port."""
    (container,) = _pod(workloads, name)["spec"]["containers"]
    assert container["readinessProbe"]["grpc"] == {
        "port": port_of(container, "grpc"),
        "service": SERVICES[name],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_liveness_does_not_depend_on_readiness(workloads: Workloads, name: str) -> None:
    """A pod is not restarted because the store is away: liveness is not gRPC health."""
    (container,) = _pod(workloads, name)["spec"]["containers"]
    for kind in ("startupProbe", "livenessProbe"):
        assert "grpc" not in container[kind]
        assert container[kind]["httpGet"] == {"path": "/metrics", "port": "metrics"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_agree(
    workloads: Workloads,
    manifests: list[Document],
    containers: list[Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Arguments, container ports, the Service and the scrape annotations say the same."""
    template = _pod(workloads, name)
    (container,) = template["spec"]["containers"]
    (parsed,) = [each for each in containers if (each.where, each.name) == ("kubernetes", name)]
    _, context = parsed.parse(monkeypatch)
    grpc, metrics = (
        int(context.params[each].rpartition(":")[2]) for each in ("address", "metrics_address")
    )
    assert (port_of(container, "grpc"), port_of(container, "metrics")) == (grpc, metrics)
    (served,) = of_kind(manifests, "Service")[name]["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (grpc, "grpc")
    annotations = template["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == str(metrics)
    assert annotations["prometheus.io/path"] == "/metrics"


@pytest.mark.parametrize("name", SERVICES)
def test_pods_are_given_longer_to_stop_than_they_drain(
    workloads: Workloads, containers: list[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod is killed only after its preStop pause and the grace that it gives its calls."""
    spec = _pod(workloads, name)["spec"]
    (parsed,) = [each for each in containers if (each.where, each.name) == ("kubernetes", name)]
    _, context = parsed.parse(monkeypatch)
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > pause + context.params["grace"]


def test_services_budgets_and_workloads_select_one_kind_of_pod(
    workloads: Workloads, manifests: list[Document]
) -> None:
    """A Service, a budget and a workload named X select the pods of X and no others."""
    pods = {
        each["metadata"]["name"]: template["metadata"]["labels"] for each, template in workloads
    }
    selectors = [
        *(
            (name, {"matchLabels": each["spec"]["selector"]})
            for name, each in of_kind(manifests, "Service").items()
        ),
        *(
            (name, each["spec"]["selector"])
            for kind in ("PodDisruptionBudget", "Deployment", "StatefulSet")
            for name, each in of_kind(manifests, kind).items()
        ),
    ]
    for name, selector in selectors:
        assert [pod for pod, labels in pods.items() if selects(selector, labels)] == [name]


def test_callers_balance_over_replicas(manifests: list[Document]) -> None:
    """The replicated services are headless, so that a channel reaches all of their pods."""
    services = of_kind(manifests, "Service")
    assert all(services[name]["spec"]["clusterIP"] == "None" for name in ("embedder", "search"))


def test_replicated_services_survive_a_drained_node(manifests: list[Document]) -> None:
    """Embedder and search keep a pod through updates and drained nodes."""
    deployments, budgets = (of_kind(manifests, k) for k in ("Deployment", "PodDisruptionBudget"))
    assert set(budgets) == {"embedder", "search"}
    for name, budget in budgets.items():
        spec = deployments[name]["spec"]
        assert spec["replicas"] > budget["spec"]["minAvailable"] >= 1
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_clusterer_is_never_two(manifests: list[Document]) -> None:
    """One clusterer per store, during updates too."""
    spec = of_kind(manifests, "Deployment")["clusterer"]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_reclustering_is_bounded(manifests: list[Document]) -> None:
    """Runs never overlap, never start late, end before the next, and leave nothing behind."""
    spec = of_kind(manifests, "CronJob")["recluster"]["spec"]
    job = spec["jobTemplate"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    minute, hour, *every_day = spec["schedule"].split()
    assert every_day == ["*", "*", "*"]
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    assert spec["startingDeadlineSeconds"] > 10  # under 10 s the controller may miss it
    assert spec["startingDeadlineSeconds"] + job["activeDeadlineSeconds"] < DAY_S
    assert job["backoffLimit"] <= 1
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = [each for each in job["podFailurePolicy"]["rules"] if "onExitCodes" in each]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [2, Refused.exit_code, Busy.exit_code]


def test_reclustering_waits_for_the_run_under_a_gate(
    containers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job follows the run, so that its exit status is the run's, and bounds what may move."""
    (parsed,) = [each for each in containers if each.name == "recluster"]
    _, context = parsed.parse(monkeypatch)
    assert context.params["wait"] is True
    assert context.params["plan"] is False
    assert 0 < context.params["max_moved_share"] < 1


def test_store_is_reached_by_the_services_only(
    workloads: Workloads, manifests: list[Document], containers: list[Any]
) -> None:
    """The network policy lets in the pods that are told where the store is, and no others."""
    (policy,) = of_kind(manifests, "NetworkPolicy").values()
    pods = {
        each["metadata"]["name"]: template["metadata"]["labels"] for each, template in workloads
    }
    (rule,) = policy["spec"]["ingress"]
    (source,) = rule["from"]
    allowed = {name for name, labels in pods.items() if selects(source["podSelector"], labels)}
    told = {
        each.name
        for each in containers
        if each.where == "kubernetes" and "SHOAL_STORE_URL" in each.environment
    }
    assert allowed == told == set(SERVICES)
    guarded = [n for n, labels in pods.items() if selects(policy["spec"]["podSelector"], labels)]
    assert guarded == ["qdrant"]


def test_store_keeps_its_data_and_wants_its_key(workloads: Workloads, compose: Any) -> None:
    """Qdrant is the version that Compose runs, on a volume claim, with an API key."""
    store = next(each for each, _ in workloads if each["metadata"]["name"] == "qdrant")
    (container,) = store["spec"]["template"]["spec"]["containers"]
    assert container["image"] == compose["services"]["qdrant"]["image"]
    (claim,) = store["spec"]["volumeClaimTemplates"]
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert mounts["/qdrant/storage"] == claim["metadata"]["name"]
    environment = {each["name"]: each for each in container["env"]}
    assert "secretKeyRef" in environment["QDRANT__SERVICE__API_KEY"]["valueFrom"]


def test_secrets_are_those_of_the_example(workloads: Workloads) -> None:
    """Every key that a pod asks for is in the example, whose values are placeholders."""
    example = yaml.safe_load((KUBERNETES / "secret.example.yaml").read_text())
    asked = {
        (each["valueFrom"]["secretKeyRef"]["name"], each["valueFrom"]["secretKeyRef"]["key"])
        for _, template in workloads
        for container in template["spec"]["containers"]
        for each in container["env"]
        if "valueFrom" in each
    }
    assert asked == {(example["metadata"]["name"], key) for key in example["stringData"]}
    assert set(example["stringData"].values()) == {"REPLACE-ME"}


def _pod(workloads: Workloads, name: str) -> Document:
    return next(template for each, template in workloads if each["metadata"]["name"] == name)
