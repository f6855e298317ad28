"""Downloads of the files of a repository: only what is missing, resumed, checked, several files at a time.

A file gets its name only when all its bytes are there and its digest is right. A process that is killed leaves a
partial file, which the next one resumes. The first of the files is placed last: if it is there, all are.
"""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from llmdeploy.errors import DownloadFailed
from llmdeploy.models import digest
from llmdeploy.models.digest import Checksum
from llmdeploy.models.reference import HubFile
from llmdeploy.models.requirements import RequiredFile, Requirements
from llmdeploy.models.safe_paths import require_own, require_places
from llmdeploy.models.source import CACHE_VARIABLES, Listing, OnProgress, Origin, RemoteFile, origin
from llmdeploy.paths import state_dir

if TYPE_CHECKING:
    from io import FileIO

FILES_AT_ONCE = 8
POLL_SECONDS = 0.2
"""Seconds between two checks of a lock that another process holds, or for Ctrl-C in a wait that it does not end."""
PROGRESS_SECONDS = 0.05
"""Seconds between two progress reports on one file."""
TRIES = 2
"""Downloads of one file at most: a partial file that was damaged on the disk is downloaded again."""


def need(listing: Listing, files: Sequence[RemoteFile], folder: Path | None = None) -> Requirements:
    """Return what these files need on the disk of their source's cache, or of `folder`."""
    homes = [_destination(listing, file, folder) for file in files]
    where = (
        "give another folder with `--dir`"
        if folder
        else f"set `{CACHE_VARIABLES[listing.repo.source]}` to a folder on another disk"
    )
    return Requirements(
        source=f"{listing.repo.source}://{listing.repo.repo}",
        folder=folder or origin(listing.repo.source).cache(),
        files=tuple(RequiredFile(home.file.path, home.file.size, home.here(), home.file.digest) for home in homes),
        revision=listing.commit,
        remedy=f"free some space, or {where}",
    )


def fetch(listing: Listing, files: Sequence[RemoteFile], on_progress: OnProgress, folder: Path | None = None) -> None:
    """Download the files that are missing, to the source's cache, or to `folder` under their paths.

    Raises DownloadFailed, before the first byte if the disk is too small. The error of one file ends all downloads at
    once, and so does Ctrl-C.
    """
    needed = need(listing, files, folder)
    needed.require_room()
    for file in needed.files:
        on_progress(file.name, file.here, file.size)
    homes = [_destination(listing, file, folder) for file in files]
    missing = [home for home in homes if not home.is_whole()]
    download = _Download(listing, on_progress, len(missing))
    download.all(missing)
    if lost := [home.file.path for home in homes if not home.is_whole()]:
        raise DownloadFailed(
            f"`{lost[0]}` was removed while other files of `{listing.repo}` were downloaded",
            "the same command fetches what is missing",
        )


# --- Where a file goes


@dataclass(frozen=True)
class _Destination:
    """The paths of one file: of its partial file and of the file itself. Used by one thread at a time."""

    file: RemoteFile
    root: Path
    part: Callable[[], Path]
    lock: Path
    is_whole: Callable[[], bool]
    place: Callable[[Path], Path]
    variable: str = ""
    """Name of the variable that moves the cache; empty for a folder that the user has named."""

    def here(self) -> int:
        """Return the bytes that are here already."""
        if self.is_whole():
            return self.file.size
        with suppress(OSError):
            size = self.part().stat().st_size
            return size if size <= self.file.size else 0
        return 0


def _destination(listing: Listing, file: RemoteFile, folder: Path | None) -> _Destination:
    """Return the destination of a file. Raises DownloadFailed if `folder` has another file of that name."""
    require_places(str(listing.repo), [file.path])
    if folder is not None:
        return _in_folder(listing, file, folder)
    at = origin(listing.repo.source)
    return _Destination(
        file,
        at.cache(),
        partial(at.part, listing, file),
        at.lock(listing, file),
        partial(_is_cached, at, listing, file),
        partial(at.place, listing, file),
        CACHE_VARIABLES[listing.repo.source],
    )


def _is_cached(at: Origin, listing: Listing, file: RemoteFile) -> bool:
    """Return whether the cache has the file at that commit, and finds it by the revision too."""
    repo = listing.repo
    path = at.cached(HubFile(repo.repo, file.path, listing.commit, repo.source))
    return path is not None and path == at.cached(HubFile(repo.repo, file.path, repo.revision, repo.source))


def _in_folder(listing: Listing, file: RemoteFile, folder: Path) -> _Destination:
    path = folder / file.path
    part = path.with_name(path.name + ".incomplete")
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DownloadFailed(
            f"`{path.parent}` is a link that leads out of `{folder}`", "remove it, or give another folder with `--dir`"
        )
    if path.is_file() and not _is_same(file, path):
        raise DownloadFailed(
            f"`{path}` is there already, and is not what `{listing.repo.repo}` has under that name",
            "move it away, or give another folder with `--dir`",
        )
    # The lock is in the state folder, because the folder belongs to the user.
    lock = state_dir() / "locks" / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]}.lock"
    return _Destination(file, folder, lambda: part, lock, path.is_file, partial(_move, path))


def _is_same(file: RemoteFile, path: Path) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        return digest.sha256(path, lambda *_: None) == file.sha256
    return digest.of_file(file, path) == file.digest


def _move(path: Path, part: Path) -> Path:
    return part.replace(path)


# --- The download


class _Stopped(BaseException):
    """Ends a thread whose work is no longer needed. Libraries that retry on errors do not catch it."""


class _Download:
    """A download of several files, by several threads."""

    def __init__(self, listing: Listing, on_progress: OnProgress, count: int) -> None:
        self._listing = listing
        self._on_progress = on_progress
        self._reporting = threading.Lock()
        self._stop = threading.Event()
        self._others = count - 1
        self._first_may_be_placed = threading.Event()

    def all(self, homes: Sequence[_Destination]) -> None:
        """Download all files. Raises the first error."""
        todo: SimpleQueue[_Destination] = SimpleQueue()
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for home in homes:
            todo.put(home)

        def work() -> None:
            with suppress(Empty):
                while not self._stop.is_set():
                    home = todo.get_nowait()
                    try:
                        self._fetch_one(home, is_first=home is homes[0])
                        done.put(None)
                    except BaseException as error:  # handed to the waiting thread
                        done.put(error)

        try:
            for _ in homes[:FILES_AT_ONCE]:
                threading.Thread(target=work, daemon=True).start()  # a hanging one must not be waited for
            for _ in homes:
                if error := _wait_for_next(done):
                    raise error
        finally:
            self._stop.set()

    def _fetch_one(self, home: _Destination, *, is_first: bool) -> None:
        with _disk_errors(home.root, home.variable), self._locked(home):
            if not home.is_whole():
                self._fill(home)
                if is_first:
                    self._wait_for_the_others()
                placed = home.place(home.part())
                if home.file.sha256:  # so that a later change is found
                    digest.save(placed, home.file.sha256)
        self._report(home, home.file.size)
        if not is_first:
            self._count_finished()

    def _fill(self, home: _Destination) -> None:
        """Complete the partial file and check its digest."""
        for attempt in range(TRIES):
            part = home.part()  # a different one after a damaged one was found
            part.parent.mkdir(parents=True, exist_ok=True)
            if digest.verified(part) == home.file.digest:  # another commit has the same content
                return
            try:
                found = self._copy(home, part)
            except BaseException:
                if part.stat().st_size == 0:  # nothing that a later download could resume
                    part.unlink()
                raise
            if found == home.file.digest:
                return
            part.unlink(missing_ok=True)
            self._report(home, 0)
            if attempt == TRIES - 1:
                raise DownloadFailed(
                    f"the download of `{home.file.path}` is not what `{self._listing.repo}` lists: its digest is "
                    f"{found[:12]}…, and not {home.file.digest[:12]}…",
                    "try again later, or from another network: something on the way changes the file",
                )

    def _copy(self, home: _Destination, part: Path) -> str:
        """Download what is missing to the end of the partial file; return the digest of the whole."""
        require_own(part)
        start = part.stat().st_size if part.exists() else 0
        if start > home.file.size:
            part.unlink()
            start = 0
        with part.open("a+b", buffering=0) as stream:
            sink = _PartialFile(part, stream, home, partial(self._continue, home))
            try:
                sink.follow()  # the bytes that an earlier process has left
                if start < home.file.size:
                    origin(self._listing.repo.source).copy(self._listing, home.file, start, sink)
                return sink.checksum.digest()
            finally:
                sink.checksum.close()

    def _continue(self, home: _Destination, done: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._report(home, done)

    def _report(self, home: _Destination, done: int) -> None:
        with self._reporting:
            if not self._stop.is_set():
                self._on_progress(home.file.path, done, home.file.size)

    def _count_finished(self) -> None:
        with self._reporting:
            self._others -= 1
            if self._others == 0:
                self._first_may_be_placed.set()

    def _wait_for_the_others(self) -> None:
        while self._others and not self._first_may_be_placed.wait(POLL_SECONDS):
            if self._stop.is_set():
                raise _Stopped

    @contextmanager
    def _locked(self, home: _Destination) -> Iterator[None]:
        """Hold the lock of the file among all processes; the system frees the lock of a process that was killed."""
        from filelock import FileLock, Timeout

        home.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home.lock, mode=0o664)  # other users may share the cache
        while True:
            try:
                lock.acquire(timeout=POLL_SECONDS)
                break
            except Timeout:
                self._continue(home, home.here())  # the bytes that the other process has written
            except NotImplementedError:  # a file system without locks: the digest finds what two writers mixed up
                break
        try:
            yield
        finally:
            lock.release()


class _PartialFile:
    """A partial file that is written: counts its bytes, computes the digest, and ends the download if it must stop."""

    def __init__(self, path: Path, stream: FileIO, home: _Destination, on_bytes: Callable[[int], None]) -> None:
        self.path = path
        self.checksum = Checksum(home.file)
        self._stream = stream
        self._home = home
        self._continue = on_bytes
        self._at = 0
        self._arrived = 0
        self._last_report = 0.0

    def write(self, data: bytes) -> int:
        if self._at + len(data) > self._home.file.size:
            raise DownloadFailed(
                f"more bytes of `{self._home.file.path}` arrive than it should have", "try again later"
            )
        with _disk_errors(self._home.root, self._home.variable):
            rest = memoryview(data)
            while rest:
                rest = rest[self._stream.write(rest) :]
        self.checksum.feed(data)
        self._move_on(len(data))
        return len(data)

    def follow(self, arrived: int = 0) -> None:
        """Hash and count the bytes that the writer appended to the file since the last call.

        `arrived`: bytes that the writer reports as received in all, even if they are not on the disk yet.
        """
        self._arrived = min(max(arrived, self._arrived), self._home.file.size)
        with _disk_errors(self._home.root, self._home.variable):
            self._stream.seek(self._at)
            while count := self.checksum.feed_from(self._stream):
                self._move_on(count)
        self._move_on(0)

    def _move_on(self, count: int) -> None:
        self._at += count
        if time.monotonic() > self._last_report + PROGRESS_SECONDS:
            self._last_report = time.monotonic()
            self._continue(max(self._at, self._arrived))

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = 0) -> int:
        """Go back to the beginning, and nowhere else: the server sends the whole file again."""
        assert (place, whence) == (0, 0)
        self.checksum.close()
        self.checksum = Checksum(self._home.file)
        self._at = self._arrived = 0
        return 0

    def truncate(self) -> int:
        return self._stream.truncate(self._at)

    def flush(self) -> None: ...


def _wait_for_next(results: SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:
        with suppress(Empty):
            return results.get(timeout=POLL_SECONDS)


@contextmanager
def _disk_errors(root: Path, variable: str) -> Iterator[None]:
    """Raise DownloadFailed for errors of the disk. `variable`: the one that moves `root`; empty for `--dir`."""
    try:
        yield
    except OSError as error:
        way = f"set `{variable}` to {{}}, or give one with `--dir`" if variable else "give {} with `--dir`"
        other = way.format("a folder on another disk")
        if error.errno == errno.EFBIG:
            raise DownloadFailed(f"the file system of `{root}` takes no file of this size", other) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DownloadFailed(
                f"the disk of `{root}` became full",
                f"free some space, and try again: what is here is kept; or {other}",
                code="disk_full",
            ) from error
        if error.filename and Path(error.filename).is_relative_to(state_dir()):
            raise DownloadFailed(
                f"the state folder `{state_dir()}` cannot be written: {error.strerror}",
                "set `LLMDEPLOY_STATE_DIR` to a folder that you may write to",
            ) from error
        raise DownloadFailed(
            f"`{root}` cannot be used: {error.strerror or error}", way.format("a folder that you may write to")
        ) from error
