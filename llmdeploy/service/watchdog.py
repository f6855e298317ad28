"""A leash for a server: run as a program of its own, it ends the server's whole process group when the leash is let go.

    python watchdog.py GRACE PROGRAM [ARGUMENT ...]

The leash is standard input. Whoever started the guard holds the other end; when that end is closed, on purpose or
because its holder was killed, the group gets SIGTERM and, GRACE seconds later, SIGKILL. Standard output carries the
server's process id alone; all that the server writes goes to standard error. The guard ends as the server does (128 + N
for signal N).

It is started as a file with `python -I -S`, so it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

POSIX = os.name == "posix"


def main(argv: list[str]) -> int:
    grace, *command = argv
    _restore_open_files()
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=POSIX)
    except OSError as error:
        print(0, flush=True)
        print(f"cannot run `{command[0]}`: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    with contextlib.suppress(OSError):  # whoever started it may be gone already: the leash tells
        print(server.pid, flush=True)
    let_go = threading.Event()
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: let_go.set())
    threading.Thread(target=_hold, args=(let_go,), daemon=True).start()
    threading.Thread(target=_end, args=(let_go, server, float(grace)), daemon=True).start()
    status = server.wait()
    _signal_group(server, kill=True)  # workers that outlive their parent
    return 128 - status if status < 0 else status


def _restore_open_files() -> None:
    """Give the server the limit of open files that the service was started with; the service raises its own."""
    limit = os.environ.pop("LLMDEPLOY_OPEN_FILES", "")
    if limit and POSIX:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), hard))


def _hold(let_go: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    let_go.set()


def _end(let_go: threading.Event, server: subprocess.Popen[bytes], grace: float) -> None:
    let_go.wait()
    _signal_group(server, kill=False)
    try:
        server.wait(grace)
    except subprocess.TimeoutExpired:
        _signal_group(server, kill=True)


def _signal_group(server: subprocess.Popen[bytes], *, kill: bool) -> None:
    try:
        if POSIX:
            os.killpg(server.pid, signal.SIGKILL if kill else signal.SIGTERM)
        else:
            subprocess.run(
                ["taskkill", "/T", "/F", "/PID", str(server.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
    except (ProcessLookupError, PermissionError):
        pass  # macOS says the second of a group of zombies


if __name__ == "__main__":
    # Not sys.exit: a thread still reads standard input, and waiting for it would keep the guard alive.
    status = main(sys.argv[1:])
    os._exit(status)
