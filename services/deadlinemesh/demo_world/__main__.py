"""`python -m deadlinemesh.demo_world`: serves until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal

from deadlinemesh.demo_world.server import serving
from deadlinemesh.demo_world.world import DemoWorld


async def main() -> None:
    """Parse the arguments and serve until a signal arrives."""
    parser = argparse.ArgumentParser(prog="demo_world", description="The upstreams of the article, over HTTP.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0, the default, takes a free one")
    parser.add_argument("--seed", type=int, default=0, help="same seed and same request: same answer, same latency")
    parser.add_argument(
        "--speed", type=float, default=1.0, help="divides all latencies; inf answers at once (%(default)s)"
    )
    options = parser.parse_args()
    if not options.speed > 0:
        parser.error("--speed must be greater than 0")
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop.set)
    async with serving(DemoWorld(seed=options.seed, speed=options.speed), host=options.host, port=options.port) as url:
        print(f"demo world: {url}", flush=True)
        await told_to_stop.wait()


asyncio.run(main())
