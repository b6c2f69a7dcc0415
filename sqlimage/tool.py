"""Which program wrote something: told in control rows and in the audit trail."""

from __future__ import annotations

VERSION = "0.1.0"
TOOL = f"sqlimage {VERSION}"
