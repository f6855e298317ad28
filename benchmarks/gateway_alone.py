"""Run the gateway alone, in front of a running upstream, and print its port.

python benchmarks/gateway_alone.py UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from llmdeploy.gateway.gateway import Gateway, Limits
from llmdeploy.gateway.target import Target


async def main(upstream: int) -> None:
    gateway = Gateway(Limits())
    await gateway.listen("127.0.0.1", 0)
    gateway.route.point(Target("bench", "bench", "127.0.0.1", upstream, ("text", "image")))
    print(gateway.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
