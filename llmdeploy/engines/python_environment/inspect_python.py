"""A program that prints what is installed beside its Python, as JSON, without an import of the engine or torch.

`contents.py` makes any Python run the text of this file, so it uses only what Python 3.8 knows. Arguments: the name of
the package, then the names of its distributions, the preferred one first.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from importlib import metadata, util


def distribution(names: list[str]) -> metadata.Distribution | None:
    """Return the metadata of the first distribution that is installed."""
    for name in names:
        for found in metadata.distributions(name=name):
            return found
    return None


def package(name: str) -> str | None:
    """Return the folder of a package, without importing it."""
    spec = util.find_spec(name)
    return os.path.dirname(spec.origin) if spec and spec.origin else None


def torch_version() -> dict[str, str | None]:
    """Return the fields of torch's `version.py`, from lines such as `cuda: Optional[str] = '13.0'`."""
    folder = package("torch")
    if folder is None:
        return {}
    with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:
        lines = re.findall(r"^(\w+)[^=\n]*= *(?:'([^']*)'|None)", file.read(), re.MULTILINE)
    return {name: value or None for name, value in lines}


def main() -> None:
    """Print the contents."""
    name, *distributions = sys.argv[1:]
    found = distribution(distributions)
    torch = torch_version()
    contents = {
        "python_version": platform.python_version(),
        "folders": [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))],
        "name": found.metadata["Name"] if found else None,
        "version": found.version if found else None,
        "requires_python": (found.metadata["Requires-Python"] or "") if found else "",
        "package": package(name) is not None,
        "torch": torch.get("__version__"),
        "cuda": torch.get("cuda"),
        "rocm": torch.get("hip"),
        "xpu": torch.get("xpu"),
    }
    print(json.dumps(contents))


if __name__ == "__main__":
    main()
