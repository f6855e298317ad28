"""Errors that are reported to the user.

* LlmdeployError                 base class: what happened, and what to type next
  + UsageError                   the command line is wrong (exit status 2)
  + ConfigError                  a configuration file or an LLMDEPLOY_* variable is wrong
  + ModelNotFound                no model of that name is known
  + ModelInvalid                 the weights are present but cannot be used
  + DownloadFailed               the weights cannot be downloaded
  + ImageInvalid                 not an image, or it cannot be fetched
  + EngineMissing                the engine is not installed
  + InstallFailed                an engine cannot be installed or removed
  + DoesNotFit                   the plan needs more memory than is free
  + PortInUse                    another program listens on the port
  + AlreadyServing               a service already runs for this state folder
  + NotServing                   no service is running
  + StartFailed                  the server exited or stopped responding before it was ready
  + ServerDied                   the server exited while it served
  + RequestFailed                the server refused a request or broke off the answer
  + TimedOut                     a deadline passed
  + NotPermitted                 a process belongs to another user
  + StateUnwritable              the state folder cannot be written

`code` is stable: scripts read it from `--json`. Any exception that is not an LlmdeployError is a bug, except that the
machine is short of something (`shortage`).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


@dataclass(frozen=True)
class Remedy:
    """A setting with which a retry may succeed: the engine's own name for it, and the value."""

    key: str
    value: int | float | str | bool
    lasts: bool = True
    """Whether later starts use it too; False for a value that depends on the memory free at that moment."""


class LlmdeployError(Exception):
    """Expected failure: `message` says what happened, `hint` what to type next."""

    code = "failed"
    exit_status = 1

    def __init__(self, message: str, hint: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def as_document(self) -> dict[str, dict[str, str]]:
        """Return the `{"error": ...}` document that `--json` prints and the record stores."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}

    @classmethod
    def from_document(cls, document: dict[str, dict[str, str]]) -> LlmdeployError:
        """Rebuild an error from the document that another llmdeploy process printed or recorded."""
        error = document["error"]
        return LlmdeployError(error["message"], error["hint"], code=error["code"])


class UsageError(LlmdeployError):
    code = "usage"
    exit_status = 2


class ConfigError(LlmdeployError):
    code = "config_invalid"


class ModelNotFound(LlmdeployError):
    code = "model_not_found"


class ModelInvalid(LlmdeployError):
    code = "model_invalid"


class DownloadFailed(LlmdeployError):
    code = "download_failed"


class ImageInvalid(LlmdeployError):
    code = "image_invalid"


class EngineMissing(LlmdeployError):
    code = "engine_missing"


class InstallFailed(LlmdeployError):
    code = "install_failed"


class DoesNotFit(LlmdeployError):
    code = "does_not_fit"


class PortInUse(LlmdeployError):
    code = "port_in_use"


class AlreadyServing(LlmdeployError):
    code = "already_serving"


class NotServing(LlmdeployError):
    code = "not_serving"


class StartFailed(LlmdeployError):
    code = "start_failed"
    remedy: Remedy | None = None
    """Setting with which a retry may succeed."""


class ServerDied(LlmdeployError):
    code = "server_died"
    remedy: Remedy | None = None


class RequestFailed(LlmdeployError):
    code = "request_failed"


class TimedOut(LlmdeployError):
    code = "timed_out"


class NotPermitted(LlmdeployError):
    code = "not_permitted"


class StateUnwritable(LlmdeployError):
    code = "state_unwritable"


SHORTAGES = {
    errno.EMFILE: "`ulimit -n 4096` raises the limit",
    errno.ENFILE: "close programs, or raise the limit: `sysctl fs.file-max`",
    errno.ENOSPC: "free some space: `df -h` and `df -i` show what is full",
    errno.EDQUOT: "free some space: `quota` shows the limit",
    errno.EFBIG: "`ulimit -f unlimited` raises the limit",
    errno.ENOMEM: "close programs that use memory: `ps aux --sort=-rss`",
}
"""Hints for a machine that runs short of something, by the number of the error."""


def shortage(error: BaseException) -> LlmdeployError | None:
    """Return the error to report if the machine is short of files, space or memory; None for any other exception."""
    if not isinstance(error, OSError) or error.errno not in SHORTAGES:
        return None
    what = f"`{error.filename}`: {error.strerror}" if error.filename else f"{error.strerror}"
    return LlmdeployError(f"the machine is short of something that is needed: {what}", SHORTAGES[error.errno])


def as_error(error: Exception) -> LlmdeployError:
    """Return the error to report for any exception; for one that is not expected, that it is a bug."""
    if isinstance(error, LlmdeployError):
        return error
    bug = StartFailed(f"this is a bug in llmdeploy: {error!r}", "`llmdeploy status`", code="internal")
    return shortage(error) or bug
