"""The HTTP server of llama.cpp in the xllamacpp wheel, as a program.

Run it as `python -m llmdeploy.engines.llamacpp.server_program`. It has the flags of `llama-server` that the engine
uses, so one command line starts both programs. It serves from C++ threads until it is killed.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is killed. Return 1 if it cannot start."""
    arguments = _parse(argv)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    if arguments.mmproj:
        params.mmproj.path = arguments.mmproj
    params.n_ctx = arguments.ctx_size
    params.n_parallel = arguments.parallel
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.n_gpu_layers = arguments.n_gpu_layers
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.model_alias = {arguments.alias}
    params.cors_origins = ""  # web pages of other origins may not use the model
    params.endpoint_metrics = arguments.metrics
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    params.api_prefix = os.environ.get("LLAMA_ARG_API_PREFIX", "")
    if cache_mib := os.environ.get("LLAMA_ARG_CACHE_RAM"):
        params.cache_ram_mib = int(cache_mib)
    if checkpoints := os.environ.get("LLAMA_ARG_CTX_CHECKPOINTS"):
        params.n_ctx_checkpoints = int(checkpoints)
    try:
        server = xllamacpp.Server(params)  # returns when the model is loaded and the port listens
    except RuntimeError as error:
        print(error, file=sys.stderr)  # the cause is above it, in the log of llama.cpp
        return 1
    threading.Event().wait()
    del server
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llama-server", description="llama.cpp's own HTTP server, out of the xllamacpp wheel."
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--mmproj")
    parser.add_argument("--ctx-size", type=int, required=True, help="tokens of all slots together")
    parser.add_argument("--parallel", type=int, required=True, help="slots")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--n-gpu-layers", type=int, default=-1)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--metrics", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
