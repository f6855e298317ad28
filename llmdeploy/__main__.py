"""`llmdeploy` and `python -m llmdeploy`."""

from __future__ import annotations

import sys


def main() -> None:
    # What must be instant is answered before anything is loaded.
    from llmdeploy.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
