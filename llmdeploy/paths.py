"""Files and folders of llmdeploy. A variable moves each; this module creates nothing.

| what          | variable              | default (Linux)                        |
| ------------- | --------------------- | -------------------------------------- |
| configuration | LLMDEPLOY_CONFIG      | $XDG_CONFIG_HOME/llmdeploy/config.toml |
| state         | LLMDEPLOY_STATE_DIR   | $XDG_STATE_HOME/llmdeploy              |
| data          | LLMDEPLOY_DATA_DIR    | $XDG_DATA_HOME/llmdeploy               |
"""

from __future__ import annotations

import os
from pathlib import Path

PROJECT_CONFIG = Path("llmdeploy.toml")


def user_config_file() -> Path:
    """Return the user's configuration file, which need not exist."""
    if path := os.environ.get("LLMDEPLOY_CONFIG"):
        return Path(os.path.expanduser(path))
    import platformdirs

    return platformdirs.user_config_path("llmdeploy", appauthor=False) / "config.toml"


def state_dir() -> Path:
    """Return the folder of the record, the lock and the logs. Each state folder has at most one service."""
    if path := os.environ.get("LLMDEPLOY_STATE_DIR"):
        return Path(os.path.expanduser(path)).absolute()
    import platformdirs

    return platformdirs.user_state_path("llmdeploy", appauthor=False)


def data_dir() -> Path:
    """Return the folder of the engines that llmdeploy installs: large, and shared by all state folders."""
    if path := os.environ.get("LLMDEPLOY_DATA_DIR"):
        return Path(os.path.expanduser(path)).absolute()
    import platformdirs

    return platformdirs.user_data_path("llmdeploy", appauthor=False)


def selftest_dir() -> Path:
    """Return the folder of the self-test model that ships with the package."""
    return Path(__file__).parent / "selftest"
