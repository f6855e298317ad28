"""Files and folders of llmdeploy. A variable moves each; this module creates nothing.

| what          | variable              | default (Linux)                        |
| ------------- | --------------------- | -------------------------------------- |
| configuration | LLMDEPLOY_CONFIG      | $XDG_CONFIG_HOME/llmdeploy/config.toml |
| state         | LLMDEPLOY_STATE_DIR   | $XDG_STATE_HOME/llmdeploy              |
| data          | LLMDEPLOY_DATA_DIR    | $XDG_DATA_HOME/llmdeploy               |
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

PROJECT_CONFIG = Path("llmdeploy.toml")


def user_config_file() -> Path:
    """Return the user's configuration file, which need not exist."""
    if path := os.environ.get("LLMDEPLOY_CONFIG"):
        return Path(os.path.expanduser(path))
    return _platform_folder("config") / "config.toml"


def state_dir() -> Path:
    """Return the folder of the record, the lock and the logs. Each state folder has at most one service."""
    if path := os.environ.get("LLMDEPLOY_STATE_DIR"):
        return Path(os.path.expanduser(path)).absolute()
    return _platform_folder("state")


def data_dir() -> Path:
    """Return the folder of the engines that llmdeploy installs: large, and shared by all state folders."""
    if path := os.environ.get("LLMDEPLOY_DATA_DIR"):
        return Path(os.path.expanduser(path)).absolute()
    return _platform_folder("data")


def selftest_dir() -> Path:
    """Return the folder of the self-test model that ships with the package."""
    return Path(__file__).parent / "selftest"


def _platform_folder(kind: str) -> Path:
    """Return the user's folder of a kind (`config`, `state` or `data`), as the variables of this moment name it."""
    return _folder(kind, os.environ.get(f"XDG_{kind.upper()}_HOME"), os.environ.get("HOME"))


@cache
def _folder(kind: str, *variables: str | None) -> Path:
    """Return the folder; `variables` are those that platformdirs reads on Linux, so that a changed one is respected."""
    import platformdirs

    return Path(getattr(platformdirs, f"user_{kind}_path")("llmdeploy", appauthor=False))
