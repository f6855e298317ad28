"""A leash for a server: run as a program of its own, it ends the server's whole process group when the leash is let go.

    python watchdog.py GRACE PROGRAM [ARGUMENT ...]

    python watchdog.py --clean FOLDER

The leash is standard input. Whoever started the guard holds the other end; when that end is closed, on purpose or
because its holder was killed, the group gets SIGTERM and, GRACE seconds later, SIGKILL. Standard output carries the
server's process id alone; all that the server writes goes to standard error. The guard ends as the server does (128 + N
for signal N).

The server is what the kernel ends first when memory runs out. With a bound in LLMDEPLOY_MEMORY the guard also measures
the memory of the group, and kills it above the bound. The folder in LLMDEPLOY_SCRATCH, for the group's temporary files,
is removed at the end, and so is the shared memory that the group has left.

It is started as a file with `python -I -S`, so it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

POSIX = os.name == "posix"
STACKS = 1024 * 8 * 2**20
"""Bytes of addresses beyond the bound: the stacks of all threads that llama.cpp may start. They use little of it."""
FIRST_TO_DIE = 900
"""The `oom_score_adj` of a server, of at most 1000."""
LOOK = 0.2
"""Seconds between two measurements of the group's memory."""
RESTING = 10
"""Measurements between two searches for new processes and shared memory in the group."""
DYING = 1.0
"""Seconds that processes which were killed may take to let go of their shared memory."""
SHARED = ("/dev/shm/psm_", "/dev/shm/sem.", "/dev/shm/torch_", "/dev/shm/nccl-", "/dev/shm/vllm")
"""The shared memory of vLLM, torch and NCCL."""


def main(argv: list[str]) -> int:
    grace, *command = argv
    if grace == "--clean":
        clean(command[0])
        return 0
    _restore_open_files()
    bound, _, is_hard = os.environ.pop("LLMDEPLOY_MEMORY", "").partition(" ")
    scratch = os.environ.pop("LLMDEPLOY_SCRATCH", "")
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=POSIX,
            preexec_fn=(lambda: _limit(int(bound) if is_hard == "1" else 0)) if POSIX else None,
        )
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
    threading.Thread(target=_watch, args=(server, int(bound or 0), scratch), daemon=True).start()
    status = server.wait()
    _signal_group(server, kill=True)  # workers that outlive their parent
    if scratch:
        clean(scratch)
    return 128 - status if status < 0 else status


def _restore_open_files() -> None:
    """Give the server the limit of open files that the service was started with; the service raises its own."""
    limit = os.environ.pop("LLMDEPLOY_OPEN_FILES", "")
    if limit and POSIX:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), hard))


def _limit(bound: int) -> None:
    """Set the limits of the server, in its process: it ends before any other program when memory runs out."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        if bound:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (bound + STACKS, hard))
    # Other systems have no such file.
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < FIRST_TO_DIE:
            file.write(str(FIRST_TO_DIE))


def _watch(server: subprocess.Popen[bytes], bound: int, scratch: str) -> None:
    """Kill the group when it takes more memory than `bound`, and note its shared memory in `scratch`."""
    group: list[int] = []
    noted: set[str] = set()
    looks = 0
    while os.path.isdir("/proc/self/fd") and server.poll() is None:
        if looks % RESTING == 0:
            group = _group(server.pid)
            if scratch and not noted >= (shared := set().union(*map(_shared, group))):
                noted |= shared
                _note(scratch, noted)
        looks += 1
        if bound and (taken := sum(map(_memory, group))) > bound:
            print(f"\nwatchdog: ended, memory {taken} of {bound} bytes", file=sys.stderr, flush=True)
            _signal_group(server, kill=True)
        threading.Event().wait(LOOK)


def _group(leader: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if os.getpgid(int(name)) == leader:
                found.append(int(name))
    return found


def _memory(pid: int) -> int:
    """Return the bytes of memory that are the process's own: files that it maps can be read again."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm") as file:
        fields = file.read().split()
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _shared(pid: int | str) -> set[str]:
    """Return the files of the shared memory that the process maps."""
    found = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as file:
        for line in file:
            if "/dev/shm/" in line:
                path = line[line.index("/dev/shm/") :].rstrip("\n").removesuffix(" (deleted)")
                if path.startswith(SHARED):
                    found.add(path)
    return found


def _note(scratch: str, shared: set[str]) -> None:
    with contextlib.suppress(OSError), open(os.path.join(scratch, "shared-memory"), "w") as file:
        file.write("\n".join(sorted(shared)))


def clean(scratch: str) -> None:
    """Remove the folder of a server that has ended, and the shared memory that is noted in it and used by nobody."""
    import shutil

    noted: set[str] = set()
    with contextlib.suppress(OSError, ValueError), open(os.path.join(scratch, "shared-memory")) as file:
        noted = {path for path in file.read().split("\n") if path.startswith(SHARED) and os.path.exists(path)}
    deadline = time.monotonic() + DYING
    while noted:
        used = set().union(*(_shared(name) for name in os.listdir("/proc") if name.isdecimal()))
        for path in noted - used:
            with contextlib.suppress(OSError):
                os.unlink(path)
        noted &= used
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK / 4)  # a process that was killed needs a moment to end
    shutil.rmtree(scratch, ignore_errors=True)


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
