"""What the manifests start, started: the containers' own arguments and settings, as processes on this machine."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.chaos.processes import Service
from tests.support.manifests import BASE, DEDICATED, ROOT, manifests, render
from tests.support.up import GUARD

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import Draining, Unauthenticated
from deadlinemesh.identity.keys import hash_key
from deadlinemesh.policy import parse
from deadlinemesh.telemetry import CallEnded
from deadlinemesh.v1 import orchestrator_pb2

pytestmark = pytest.mark.processes

CLIENTS_CALL = "dns:///orchestrator:50051"
ENOUGH = 6
"""Answers in a row that cannot be luck where every other call would go to another pod."""
ADDRESS = re.compile(r"dns:///([a-z0-9-]+):([0-9]+)")


def key_of(tenant: str) -> str:
    return f"the-key-of-{tenant}"


class Cluster:
    """Each rendered Deployment as one process, or as `replicas` says. Its container's arguments and environment are as they are
    rendered, but for what this machine has in place of the cluster: ports of the loopback address for Services, folders for mounted
    volumes, keys that somebody has, and a quick model."""

    def __init__(self, documents: list[Any], folder: Path, replicas: Mapping[str, int]) -> None:
        self.documents = documents
        self._replicas = replicas
        self.policy = self._find("ConfigMap", manifests.POLICY_CONFIG_MAP)["data"]["policy.yaml"]
        for name, tenant in parse(self.policy, "policy.yaml").tenants.items():
            self.policy = self.policy.replace(tenant.api_keys[0], hash_key(key_of(name)))
        scripted = "    provider: scripted\n"
        assert scripted in self.policy
        self.policy = self.policy.replace(scripted, f"{scripted}    first_token: 10ms\n    per_token: 1ms\n")
        self.pods: dict[str, list[Service]] = {}
        self._folder = folder

    def _find(self, kind: str, name: str) -> dict[str, Any]:
        [body] = [one.body for one in self.documents if (one.kind, one.name) == (kind, name)]
        return body  # type: ignore[no-any-return]

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each Deployment's name, and its one container."""
        for document in self.documents:
            if document.kind == "Deployment":
                [container] = document.containers
                yield document.name, container

    def behind(self, address: str) -> str:
        """The Deployment that answers at the address, as the cluster's DNS and Service selectors lead to it."""
        match = ADDRESS.fullmatch(address)
        assert match, address
        service = self._find("Service", match[1])["spec"]
        [port] = [one for one in service["ports"] if one["port"] == int(match[2])]
        [workload] = [
            one
            for one in self.documents
            if one.kind == "Deployment"
            and service["selector"].items() <= one.at("spec", "template", "metadata", "labels").items()
        ]
        [container] = workload.containers
        opened = {one["name"]: one["containerPort"] for one in container["ports"]}
        listen = next(one["value"] for one in container["env"] if one["name"] == "DMESH_LISTEN")
        assert listen == f"0.0.0.0:{opened[port['targetPort']]}"
        # Headless: DNS gives the pods themselves, so the port that is called must be the one that they listen on.
        assert service["clusterIP"] == "None"
        assert port["port"] == opened[port["targetPort"]]
        return str(workload.name)

    def local(self, address: str) -> str:
        """Where that is on this machine."""
        pods = [f"127.0.0.1:{pod.life.port}" for pod in self.pods[self.behind(address)]]
        return pods[0] if len(pods) == 1 else f"ipv4:{','.join(pods)}"

    async def start(self) -> None:
        """Start every process, those that are called before those that call them."""
        waiting = dict(self.containers())
        while waiting:
            ready = {
                name: container
                for name, container in waiting.items()
                if not {self.behind(match[0]) for match in ADDRESS.finditer(str(container["env"]))} & waiting.keys()
            }
            assert ready, f"these call each other: {', '.join(waiting)}"
            for name, container in ready.items():
                del waiting[name]
                environment = self._environment(name, container)
                self.pods[name] = []
                for number in range(self._replicas.get(name, 1)):
                    pod = Service(f"{name}-{number}", self._folder, environment, container["args"])
                    await pod.start()
                    self.pods[name].append(pod)

    def _environment(self, name: str, container: dict[str, Any]) -> dict[str, str]:
        mounted = self._volumes(name, container)
        found = {}
        for variable in container["env"]:
            value = ADDRESS.sub(lambda match: self.local(match[0]), variable["value"])
            path, _, file = value.rpartition("/")
            found[variable["name"]] = str(mounted[path] / file) if path in mounted else value
        assert found["DMESH_LISTEN"].startswith("0.0.0.0:")
        return {
            **found,
            "DMESH_LISTEN": "127.0.0.1:0",
            "PYTHONPATH": f"{ROOT / 'services'}",
            "PATH": str(Path(sys.executable).parent),
        }

    def _volumes(self, name: str, container: dict[str, Any]) -> dict[str, Path]:
        pod = self._find("Deployment", name)["spec"]["template"]["spec"]
        volumes = {one["name"]: one for one in pod["volumes"]}
        mounted = {}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            folder = mounted[mount["mountPath"]] = self._folder / name / mount["name"]
            folder.mkdir(parents=True)
            if "configMap" in volume:
                assert volume["configMap"] == {"name": manifests.POLICY_CONFIG_MAP}
                (folder / "policy.yaml").write_text(self.policy)
            if "secret" in volume:
                (folder / "token").write_text(f"the content of {volume['secret']['secretName']}\n")
        return mounted

    def change_policy(self, old: str, new: str) -> None:
        """What the kubelet does some time after an `apply`: in each pod's folder another file has the name."""
        assert old in self.policy
        self.policy = self.policy.replace(old, new)
        for file in self._folder.glob("*/*/policy.yaml"):
            fresh = file.with_suffix(".new")
            fresh.write_text(self.policy)
            fresh.replace(file)

    async def end(self) -> list[int]:
        """Have all drain, those that call first; the exit codes."""
        return [await pod.end() for pods in reversed(self.pods.values()) for pod in pods]

    def served(self, tenant: str) -> set[str]:
        """The Deployments that have served calls for the tenant."""
        return {
            name
            for name, pods in self.pods.items()
            for pod in pods
            if any(isinstance(event, CallEnded) and event.tenant_id == tenant for event in pod.life.read())
        }


@asynccontextmanager
async def cluster(directory: Path, folder: Path, **replicas: int) -> AsyncIterator[Cluster]:
    running = Cluster(render(directory), folder, replicas)
    try:
        await running.start()
        yield running
    finally:
        codes = await running.end()
    assert codes == [0] * len(codes)


async def answered(mesh: Cluster, tenant: str, address: str = CLIENTS_CALL) -> None:
    async with DeadlineMesh(mesh.local(address), api_key=key_of(tenant)) as client:
        finished = await client.answer("Calculate 6 * 7", deadline=GUARD / 2)
    assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
    assert "42" in finished.answer
    assert finished.usage.tool_calls == 1


async def logged(mesh: Cluster, words: str) -> None:
    """Return when every pod has logged `words`."""
    async with asyncio.timeout(GUARD):
        for pod in (pod for pods in mesh.pods.values() for pod in pods):
            while words not in pod.log:  # noqa: ASYNC110  # the fact is in another process's file
                await asyncio.sleep(0.05)


async def probed(mesh: Cluster) -> None:
    """Every probe of every container gets the answer that it waits for."""
    for name, container in mesh.containers():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.pods[name][0].life.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                request = health_pb2.HealthCheckRequest(service=container[probe]["grpc"]["service"])
                answer = await stub.Check(request, timeout=GUARD)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING, (name, probe)


async def test_the_base_is_a_mesh(tmp_path: Path) -> None:
    async with cluster(BASE, tmp_path) as mesh:
        await probed(mesh)
        await answered(mesh, "example")
    assert mesh.served("example") == {"orchestrator", "llm-proxy", "tool-runner"}


async def test_a_new_policy_is_in_force_without_a_restart_and_a_bad_one_never_is(tmp_path: Path) -> None:
    newcomer = f"tenants:\n  newcomer: {{tier: free, api_keys: ['{hash_key(key_of('newcomer'))}']}}\n"
    async with cluster(BASE, tmp_path) as mesh:
        with pytest.raises(Unauthenticated):
            await answered(mesh, "newcomer")
        async with DeadlineMesh(mesh.local(CLIENTS_CALL), api_key=key_of("example")) as client:
            working: asyncio.Queue[str] = asyncio.Queue()
            run = asyncio.ensure_future(long_run(client, working))
            await working.get()
            mesh.change_policy("tenants:\n", newcomer)
            await logged(mesh, "a new policy is in force")
            await answered(mesh, "newcomer")
            mesh.change_policy("tenants:\n", "tenants:\n  nobody: {tier: none}\n")
            await logged(mesh, "the policy in force is kept")
            await answered(mesh, "newcomer")
            assert (await run).outcome == orchestrator_pb2.OUTCOME_COMPLETED


async def test_the_overlay_gives_a_dedicated_tenant_its_own_pool_behind_the_address_that_clients_have(
    tmp_path: Path,
) -> None:
    async with cluster(DEDICATED, tmp_path) as mesh:
        await probed(mesh)
        await answered(mesh, "acme")
        await answered(mesh, "bolt")
        # Nobody gets past the edge.
        for pool in ("acme", "shared"):
            with pytest.raises(Unauthenticated):
                await answered(mesh, "acme", f"dns:///orchestrator-{pool}:50051")
    assert mesh.served("acme") == {"edge", "orchestrator-acme", "tool-runner-acme", "llm-proxy"}
    assert mesh.served("bolt") == {"edge", "orchestrator", "tool-runner", "llm-proxy"}


async def long_run(client: DeadlineMesh, working: asyncio.Queue[str]) -> orchestrator_pb2.RunFinished:
    """Run a tool for a while, and tell the run's id when it is at work."""
    run_id = ""
    async with aclosing(client.run("Run the long task for 6 seconds", deadline=GUARD)) as events:
        async for event in events:
            if event.HasField("started"):
                run_id = event.started.run_id
            if event.HasField("tool_call_started"):
                working.put_nowait(run_id)
            if event.HasField("finished"):
                return event.finished
    raise AssertionError("the run told no end")


async def at_work(pods: list[Service], runs: set[str], client: DeadlineMesh) -> Service:
    """One of the pods that have calls of these runs."""
    while True:
        for pod in pods:
            pod.life.read()
            if any(call.run_id in runs for call in pod.life.open_calls()):
                return pod
        await client.answer("hello")  # what a pod reports is written a little later


@pytest.mark.long
@pytest.mark.parametrize("service", ["orchestrator", "tool-runner"])
async def test_a_pod_that_drains_finishes_its_runs_and_gets_no_others(tmp_path: Path, service: str) -> None:
    async with cluster(DEDICATED, tmp_path, **{f"{service}-acme": 2}) as mesh:
        async with DeadlineMesh(mesh.local(CLIENTS_CALL), api_key=key_of("acme")) as client:
            working: asyncio.Queue[str] = asyncio.Queue()
            running = [asyncio.ensure_future(long_run(client, working)) for _ in range(2)]
            async with asyncio.timeout(GUARD):
                leaving = await at_work(mesh.pods[f"{service}-acme"], {await working.get() for _ in running}, client)
            leaving.life.process.terminate()
            in_a_row = 0
            async with asyncio.timeout(GUARD):
                while in_a_row < ENOUGH:
                    try:
                        finished = await client.answer("Calculate 6 * 7", deadline=GUARD / 2)
                        in_a_row = in_a_row + 1 if "42" in finished.answer else 0
                    except Draining:  # until it is known
                        in_a_row = 0
            assert leaving.life.process.returncode is None
            for finished in await asyncio.gather(*running):
                assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
                assert finished.usage.tool_calls == 1
