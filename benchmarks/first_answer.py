"""Measure the time from `llmdeploy serve selftest` to the first answered request: median and worst of several rounds.

python benchmarks/first_answer.py [--rounds N]

Exits with 1 if the median is over the limit of 3 s.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median

from startup import console_script, environment, free_port

LIMIT = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often it is served (5)")
    seconds = [first_answer() for _ in range(parser.parse_args().rounds)]
    print(f"first answer: median {median(seconds):.2f} s, worst {max(seconds):.2f} s, limit {LIMIT:g} s")
    return 0 if median(seconds) <= LIMIT else 1


def first_answer() -> float:
    """Serve the model, ask it until it answers, and stop it. Return the seconds until the answer."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [console_script(), "--quiet", "serve", "selftest", "--port", port]
        start = time.perf_counter()
        service = subprocess.Popen(command, env=environment(Path(folder)), stdout=subprocess.DEVNULL)
        try:
            while not answers(port):
                if service.poll() is not None:
                    sys.exit("the self-test model could not be served")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            service.terminate()
            service.wait()


def answers(port: str) -> bool:
    """Return whether the model counts to 3 when asked to."""
    body = {"model": "selftest", "messages": [{"role": "user", "content": "Count to 3"}], "temperature": 0}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between a machine and itself
    try:
        with opener.open(request, timeout=10) as response:
            return bool(json.load(response)["choices"][0]["message"]["content"] == "1 2 3")
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    sys.exit(main())
