"""Entry point of `llmdeploy` and `python -m llmdeploy`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        # Imported here, so that Ctrl-C during the import is caught too.
        from llmdeploy.cli.main import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # no command has begun
        sys.exit(130)


if __name__ == "__main__":
    main()
