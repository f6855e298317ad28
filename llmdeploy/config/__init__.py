"""The configuration: which settings there are, and where each value comes from.

`load()` merges the files, the variables and the flags into `Settings`. `edit` changes a configuration file in place;
`api_key` reads the key that applications must send.
"""

from llmdeploy.config.record import document, from_document
from llmdeploy.config.settings import (
    DEFAULT,
    ENGINE_NAMES,
    Flags,
    Key,
    Settings,
    Value,
    key_named,
    keys,
    with_values,
)
from llmdeploy.config.sources import load

__all__ = [
    "DEFAULT",
    "ENGINE_NAMES",
    "Flags",
    "Key",
    "Settings",
    "Value",
    "document",
    "from_document",
    "key_named",
    "keys",
    "load",
    "with_values",
]
