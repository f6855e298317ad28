"""`llmdeploy` and `python -m llmdeploy`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        # What must be instant is answered before anything else is loaded.
        from llmdeploy.cli.main import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # so early that no command has begun
        sys.exit(130)


if __name__ == "__main__":
    main()
