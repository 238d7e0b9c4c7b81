"""The manifests of deploy/kubernetes: checked against published schemas, and their commands.

manifests.py check              everything below, or a sentence and exit code 1
manifests.py command CONTAINER  its environment and command, each ended by a zero byte
manifests.py field PATH         a value, such as coordinator.readinessProbe.httpGet.path
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.29", "1.31", "1.34", "1.37")
PLAIN = {"type": "object", "additionalProperties": False}
REPLICAS = {
    **PLAIN,
    "required": ["replicas", "restartPolicy", "template"],
    "properties": {
        "replicas": {"type": "integer", "minimum": 1},
        "restartPolicy": {"enum": ["Never", "OnFailure"]},
        "template": {"type": "object"},  # a pod's, checked as one
    },
}
ONE = {"properties": {"replicas": {"const": 1}}}
# Kubeflow's MPIJob v2beta1: the fields of its CRD, and what its controller refuses beyond that.
MPIJOB = {
    **PLAIN,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "kubeflow.org/v2beta1"},
        "kind": {"const": "MPIJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            **PLAIN,
            "required": ["mpiReplicaSpecs"],
            "properties": {
                "slotsPerWorker": {"type": "integer", "minimum": 1},
                "runLauncherAsWorker": {"type": "boolean"},
                "sshAuthMountPath": {"type": "string", "minLength": 1},
                "launcherCreationPolicy": {"enum": ["AtStartup", "WaitForWorkersReady"]},
                "mpiImplementation": {"enum": ["OpenMPI", "Intel", "MPICH"]},
                "runPolicy": {
                    **PLAIN,
                    "properties": {
                        "cleanPodPolicy": {"enum": ["None", "Running", "All"]},
                        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
                        "activeDeadlineSeconds": {"type": "integer", "minimum": 0},
                        "backoffLimit": {"type": "integer", "minimum": 0},
                        "schedulingPolicy": {"type": "object"},
                        "suspend": {"type": "boolean"},
                        "managedBy": {"type": "string"},
                    },
                },
                "mpiReplicaSpecs": {
                    **PLAIN,
                    "required": ["Launcher", "Worker"],
                    "properties": {
                        "Launcher": {"allOf": [REPLICAS, ONE]},
                        "Worker": REPLICAS,
                    },
                },
            },
        },
    },
}


def load() -> dict[tuple[str, str], dict[str, Any]]:
    """All documents that kustomization.yaml names, by kind and name."""
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = set(kustomization["resources"]) | {"kustomization.yaml"}
    there = {path.name for path in FOLDER.glob("*.yaml")}
    require(files == there, f"kustomization.yaml does not name exactly {sorted(there)}")
    documents = {}
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((FOLDER / name).read_text()):
            documents[document["kind"], document["metadata"]["name"]] = document
    return documents


def require(condition: bool, why: str) -> None:
    if not condition:
        sys.exit(f"manifests: {why}")


def templates(documents: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod templates by the name of their one container."""
    group = documents["MPIJob", "mla-group-0"]["spec"]["mpiReplicaSpecs"]
    found = [
        documents["Deployment", "mla-coordinator"]["spec"]["template"],
        group["Launcher"]["template"],
        group["Worker"]["template"],
    ]
    return {template["spec"]["containers"][0]["name"]: template for template in found}


def check_schemas(documents: dict[tuple[str, str], dict[str, Any]]) -> None:
    for document in documents.values():
        if document["kind"] == "MPIJob":
            jsonschema.validate(document, MPIJOB)
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    for name, template in templates(documents).items():
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": name},
        }
        pod["template"] = template
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)


def check_pods(documents: dict[tuple[str, str], dict[str, Any]]) -> None:
    for name, template in templates(documents).items():
        pod = template["spec"]
        require(len(pod["containers"]) == 1, f"{name} has company")
        container = pod["containers"][0]
        security, own = pod["securityContext"], container["securityContext"]
        require(security["runAsNonRoot"] and security["runAsUser"] == 1000, f"{name} runs as root")
        require(not own["allowPrivilegeEscalation"], f"{name} may become root")
        require(own["capabilities"]["drop"] == ["ALL"], f"{name} keeps capabilities")
        require(pod["automountServiceAccountToken"] is False, f"{name} has a token")
        require("memory" in container["resources"]["limits"], f"{name} has no limit on memory")
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        require(volumes == mounts, f"{name} mounts {mounts} of {volumes}")
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("readinessProbe", "livenessProbe"):
            for how in ("httpGet", "tcpSocket"):
                if how in container.get(probe, {}):
                    port = container[probe][how]["port"]
                    require(port in ports, f"{name} has no port {port} for its {probe}")


def check_references(documents: dict[tuple[str, str], dict[str, Any]]) -> None:
    pods = templates(documents)
    job = documents["MPIJob", "mla-group-0"]
    group = job["spec"]["mpiReplicaSpecs"]
    labels = {name: dict(pod["metadata"]["labels"]) for name, pod in pods.items()}
    for name in ("launcher", "worker"):  # as the operator adds it
        labels[name]["training.kubeflow.org/job-name"] = job["metadata"]["name"]

    def chosen(selector: dict[str, Any]) -> set[str]:
        wanted = selector["matchLabels"].items()
        return {name for name, have in labels.items() if wanted <= have.items()}

    service = documents["Service", "mla"]["spec"]
    require(chosen({"matchLabels": service["selector"]}) == {"coordinator"}, "the Service's pods")
    ports = {port["name"] for port in pods["coordinator"]["spec"]["containers"][0]["ports"]}
    require({port["targetPort"] for port in service["ports"]} == ports, "the Service's ports")
    require(service["publishNotReadyAddresses"], "workers can't join before all is ready")
    ranks = job["spec"]["slotsPerWorker"] * group["Worker"]["replicas"]
    launcher = group["Launcher"]["template"]["spec"]["containers"][0]
    worker = group["Worker"]["template"]["spec"]["containers"][0]
    require(launcher["args"][:2] == ["-n", str(ranks)], f"mpirun does not start {ranks} ranks")
    require(
        worker["resources"]["limits"]["nvidia.com/gpu"] == job["spec"]["slotsPerWorker"],
        "a slot is not a GPU",
    )
    require("--coordinator=tcp://mla:5756" in launcher["args"], "the Service's name and port")
    for budget, names, least in (
        ("mla-coordinator", {"coordinator"}, 1),
        ("mla-group-0", {"launcher", "worker"}, 1 + group["Worker"]["replicas"]),
    ):
        spec = documents["PodDisruptionBudget", budget]["spec"]
        require(chosen(spec["selector"]) == names, f"the pods of the budget {budget}")
        require(spec["minAvailable"] == least, f"the budget {budget} is not {least}")
    for policy, names in (
        ("mla-coordinator", {"coordinator"}),
        ("mla-group", {"launcher", "worker"}),
    ):
        spec = documents["NetworkPolicy", policy]["spec"]
        require(chosen(spec["podSelector"]) == names, f"the pods of the policy {policy}")
        for rule in spec["ingress"] + spec["egress"]:
            for port in rule.get("ports", []):
                named = isinstance(port["port"], str)
                require(not named or port["port"] in ports, f"{policy}: port {port['port']}")


def check_rendered(documents: dict[tuple[str, str], dict[str, Any]], text: str) -> None:
    rendered = {
        (document["kind"], document["metadata"]["name"]): document
        for document in yaml.safe_load_all(text)
    }
    for template in templates(rendered).values():
        container = template["spec"]["containers"][0]
        require(container["image"] == "mla:latest", "kustomize does not put the image's name")
        container["image"] = "mla"
    require(rendered == documents, "kustomize makes something else of the files")


def command(documents: dict[tuple[str, str], dict[str, Any]], name: str) -> list[str]:
    container = templates(documents)[name]["spec"]["containers"][0]
    environment: list[str] = [
        f"{entry['name']}={entry['value']}" for entry in container.get("env", [])
    ]
    return [*environment, *container["command"], *container.get("args", [])]


def field(documents: dict[tuple[str, str], dict[str, Any]], path: str) -> str:
    name, *rest = path.split(".")
    value: Any = templates(documents)[name]["spec"]["containers"][0]
    for part in rest:
        value = value[part]
    if rest[-1] == "port":
        container = templates(documents)[name]["spec"]["containers"][0]
        value = next(port["containerPort"] for port in container["ports"] if port["name"] == value)
    return str(value)


def main() -> None:
    documents = load()
    match sys.argv[1:]:
        case ["check"]:
            check_schemas(documents)
            check_pods(documents)
            check_references(documents)
            print(f"manifests: {len(documents)} documents, Kubernetes {', '.join(VERSIONS)}")
        case ["rendered"]:
            check_rendered(documents, sys.stdin.read())
        case ["command", name]:
            sys.stdout.write("".join(word + "\0" for word in command(documents, name)))
        case ["field", path]:
            print(field(documents, path))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
