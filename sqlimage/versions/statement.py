"""What a signature says: a version, what it is made of, and the audit trail up to it. FORMAT.md, "Signatures", defines
its text."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlimage.errors import FormatError
from sqlimage.image.fingerprint import PARTS

_FORM = 1
_MOST_BYTES = 65_536
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The audit trail when a version was signed."""

    id: int
    """Of its last row, which tells of the signing."""
    hash: bytes
    rows: int
    """How many of the rows are about the version."""
    story: bytes
    """The digest of those."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What is signed. Digests are those of :mod:`sqlimage.image.fingerprint`."""

    version: str
    """UUID."""
    digest: bytes
    parts: dict[str, bytes]
    label: bytes
    parent: tuple[str, bytes] | None
    """UUID and digest."""
    audit: AuditHead
    at: str

    def text(self) -> str:
        """The text that is signed, all of it ASCII."""
        told = {
            "sqlimage-signature": _FORM,
            "version": self.version,
            "at": self.at,
            "digest": self.digest.hex(),
            "parts": {name: digest.hex() for name, digest in self.parts.items()},
            "label": self.label.hex(),
            "parent": None if self.parent is None else {"uuid": self.parent[0], "digest": self.parent[1].hex()},
            "audit": {
                "id": self.audit.id,
                "hash": self.audit.hash.hex(),
                "rows": self.audit.rows,
                "story": self.audit.story.hex(),
            },
        }
        return json.dumps(told, separators=(",", ":"))

    @classmethod
    def parse(cls, text: bytes) -> Statement:
        """Raises :class:`~sqlimage.errors.FormatError` for what no version of this format says."""
        if len(text) > _MOST_BYTES:
            raise FormatError(f"a statement of {len(text)} bytes; {_MOST_BYTES} are allowed")
        try:
            told = json.loads(text)
            form = told["sqlimage-signature"]
            if type(form) is not int or form != _FORM:
                raise FormatError(f"a statement of the form {form!r}; this reader knows {_FORM}")
            parent, audit = told["parent"], told["audit"]
            return cls(
                _string(told["version"]),
                _digest(told["digest"]),
                {name: _digest(told["parts"][name]) for name in PARTS},
                _digest(told["label"]),
                None if parent is None else (_string(parent["uuid"]), _digest(parent["digest"])),
                AuditHead(_count(audit["id"]), _digest(audit["hash"]), _count(audit["rows"]), _digest(audit["story"])),
                _string(told["at"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError) as problem:
            raise FormatError(f"a statement that is not of the format ({problem!r})") from None


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 1 <= value < 1 << 63:
        raise TypeError(value)
    return value


def _digest(value: object) -> bytes:
    digest = bytes.fromhex(_string(value))
    if len(digest) != _DIGEST_BYTES:
        raise ValueError(value)
    return digest
