"""Versions signed: who holds a key vouches for every row of them and for the audit trail up to now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlimage.codec.ed25519 import SigningKey
from sqlimage.errors import RefusedError
from sqlimage.image.fingerprint import Fingerprints, head_digest, label_digest, story_digest
from sqlimage.image.soundness import broken_records
from sqlimage.image.writing import writing
from sqlimage.streams import audit, control, signature
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.tool import TOOL
from sqlimage.units import now
from sqlimage.versions.removal import refuse_open
from sqlimage.versions.statement import AuditHead, Statement

_ROWS_ABOUT = "SELECT count(*) FROM audit WHERE version = ?"


@dataclass(frozen=True, slots=True)
class SignedVersion:
    """A version that was signed."""

    version: int
    uuid: str
    digest: bytes
    audit_id: int
    """The row of the audit trail up to which the signature covers it."""


@dataclass(frozen=True, slots=True)
class SignReport:
    """What was signed, and by whom."""

    image: str
    public_key: bytes
    at: str
    versions: tuple[SignedVersion, ...]


def sign(
    image: str | os.PathLike[str],
    key: SigningKey,
    *,
    version: str | None = None,
    every: bool = False,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
) -> SignReport:
    """Sign a version (the latest, unless told otherwise), or with ``every`` all sealed ones, in one transaction with an
    audit row each. Of the data only the digests are read. An older signature by the same key is replaced.

    Raises :class:`~sqlimage.errors.RefusedError` for an edit that is not finished, and where the audit trail or the
    records of a version do not hold; :class:`~sqlimage.errors.NotFoundError` where a parent is not to be found.
    """
    with writing(image, "signing it") as database:
        chosen = [control.find_version(database, version)]
        if every:
            chosen = [known for known in control.versions(database) if known.state == "sealed"]
        refuse_open(database, chosen, "signed")
        _refuse_unsound(database, chosen)
        at, fingerprints = now(), Fingerprints(search)
        with database.transaction():
            # The newest first: its ancestors' fingerprints are made on the way.
            for one in reversed(chosen):
                fingerprints.of(database, one)
            signed = [_sign(database, one, key, fingerprints, at, user, message) for one in chosen]
    return SignReport(database.path, key.public, at, tuple(signed))


def _refuse_unsound(database: Database, versions: Sequence[Control]) -> None:
    problems = audit.broken_links(database)
    for version in versions:
        problems += [f"version {version.version}: {what}" for what in broken_records(database, version)]
    if problems:
        raise RefusedError(
            f"{database.path}: is not signed: {problems[0]}", hint="`sqlimage verify` tells all that is wrong with it"
        )


def _sign(
    database: Database,
    version: Control,
    key: SigningKey,
    fingerprints: Fingerprints,
    at: str,
    user: str | None,
    message: str | None,
) -> SignedVersion:
    found = fingerprints.of(database, version)
    told = {"public_key": key.public.hex(), "digest": found.digest.hex(), "message": message}
    audit.append(database, "sign", tool=TOOL, version=version.version, detail={**told}, user=user)
    last, hash_ = audit.head(database)
    count = database.row(_ROWS_ABOUT, [version.version])
    assert count is not None
    statement = Statement(
        version.uuid,
        found.digest,
        found.parts,
        label_digest(database, version.label),
        None if found.parent is None else (found.parent.control.uuid, found.parent.digest),
        AuditHead(last, head_digest(database, hash_), count[0], story_digest(database, version.version, count[0])),
        at,
    ).text()
    signature.put(database, key.public, statement, key.sign(statement.encode("ascii")))
    return SignedVersion(version.version, version.uuid, found.digest, last)
