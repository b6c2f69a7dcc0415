"""The console script: as little as can be before an interruption is answered in one line."""

from __future__ import annotations

import sys


def run() -> None:
    """Import the command line and run it."""
    try:
        from .main import main
    except KeyboardInterrupt:
        print("sqlimage: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    main()
