"""What can go wrong, as the user is told it.

* LlmdeployError                 what happened, and what to type next
  + UsageError                   the command line is wrong (exit status 2)
  + ConfigError                  a configuration file or an LLMDEPLOY_* variable is wrong
  + ModelNotFound                no engine artefact is known for that name
  + ModelInvalid                 the weights are there and cannot be used
  + DownloadFailed               the weights cannot be fetched
  + ImageInvalid                 not an image, or it cannot be fetched
  + EngineMissing                the engine is not installed here
  + InstallFailed                an engine cannot be installed, or removed
  + DoesNotFit                   the plan needs more memory than there is
  + PortInUse                    something else listens there
  + AlreadyServing               one service per state folder
  + NotServing                   there is no service to talk to
  + StartFailed                  the server ended or fell silent before it was ready
  + ServerDied                   the server ended while it served
  + RequestFailed                the server refused or broke off a request
  + TimedOut                     a deadline passed
  + NotPermitted                 a process belongs to another user
  + StateUnwritable              the state folder cannot be written

`code` is stable: scripts read it from `--json`. Anything that is not an LlmdeployError is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remedy:
    """One setting that another try may start with: the engine's own name for it, and its value."""

    key: str
    value: int | float | str | bool
    lasts: bool = True
    """Whether it holds for later starts too; not what went by the memory that was free at that moment."""


class LlmdeployError(Exception):
    """An expected failure: `message` says what happened, `hint` what to type next."""

    code = "failed"
    exit_status = 1

    def __init__(self, message: str, hint: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def as_document(self) -> dict[str, dict[str, str]]:
        """The `{"error": ...}` document that `--json` prints and the deployment record keeps."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}

    @classmethod
    def from_document(cls, document: dict[str, dict[str, str]]) -> LlmdeployError:
        """The error another process of ours printed or recorded."""
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
    """A setting that another start may succeed with."""


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
