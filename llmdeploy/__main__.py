"""Entry point of `llmdeploy` and `python -m llmdeploy`."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    gc.disable()  # until the modules are loaded: they leave no garbage, and looking for it takes a tenth of that time
    try:
        # Imported here, so that Ctrl-C during the import is caught too.
        from llmdeploy.cli.main import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # no command has begun
        sys.exit(130)


if __name__ == "__main__":
    main()
