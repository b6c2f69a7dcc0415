"""Whether versions are what somebody who is trusted has signed, and if not, what of them differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from sqlimage.codec.ed25519 import is_signed
from sqlimage.errors import FormatError, SqlimageError
from sqlimage.image.fingerprint import Fingerprint, Fingerprints, head_digest, label_digest, story_digest
from sqlimage.image.image import Image
from sqlimage.image.verify import Problem
from sqlimage.streams import audit, control, signature
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.signature import SignatureRow
from sqlimage.versions.statement import Statement

_NAMES = {
    "control": "the control row",
    "volume": "the volume table",
    "cluster_map": "the cluster map or a content in it",
    "bitmap": "the bitmap",
    "file": "the file table",
    "extent": "the extent table",
    "property": "the property table",
}
_MOST_NAMED = 5
_ADDED_BY_MERGE = re.compile(r"~\d+$")
_SINCE = "SELECT id, at, action FROM audit WHERE version = ? AND id > ? AND action IN ({}) ORDER BY id DESC LIMIT 1"
_CHANGING = ("squash", "rebase", "property")
"""Actions by which a sealed version becomes made of something else."""
_GONE = "SELECT version, action, detail FROM audit WHERE action IN ('prune', 'squash')"
_SIGNED_AND_GONE = (
    "SELECT version, max(id) FROM audit WHERE action = 'sign' AND version NOT IN (SELECT version FROM control) "
    "GROUP BY version ORDER BY version DESC"
)
_LATER = "SELECT id, detail FROM audit WHERE version = ? AND id > ? AND action = 'sign' ORDER BY id DESC"
_ABOUT = "SELECT id FROM audit WHERE version = ? ORDER BY id LIMIT 1 OFFSET ?"


@dataclass(frozen=True, slots=True)
class ValidSignature:
    """A version that is what somebody who is trusted has signed."""

    version: int
    uuid: str
    public_key: bytes
    at: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class TrustReport:
    """What is signed, and what is wrong with the rest."""

    signatures: tuple[ValidSignature, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    """What a valid signature does not cover, and signatures beside a valid one that do not hold."""


def verify_signatures(image: Image, trusted: Iterable[bytes], *, version: str | None = None) -> TrustReport:
    """Check that one version, or each sealed one, is as a holder of one of the ``trusted`` keys (32 bytes each) has
    signed it, with all its ancestors and the audit trail up to then. The image is only read, and the bytes of contents
    are not: that is :func:`~sqlimage.image.verify.verify`, and both together are the whole proof.

    What does not hold is reported, not raised.
    """
    checking = _Checking(image.database, frozenset(trusted), image.search)
    if version is not None:
        checking.check(control.find_version(image.database, version))
    else:
        # The newest first: its ancestors' fingerprints are made on the way.
        for known in reversed(control.versions(image.database)):
            if known.state == "sealed" or signature.of(image.database, known.uuid):
                checking.check(known)
            else:
                checking.note(f"version {known.version}: is an edit that is not finished, which nobody can have signed")
        checking.check_what_is_gone()
    return checking.report()


class _Checking:
    def __init__(self, database: Database, trusted: frozenset[bytes], search: Sequence[str]) -> None:
        self._database = database
        self._trusted = trusted
        self._fingerprints = Fingerprints(search)
        self._valid: list[ValidSignature] = []
        self._problems: list[list[Problem]] = []
        self._notes: list[str] = []
        self._why: dict[bytes, str] = {}
        """By digest of an ancestor, what is known of why it is not what was signed."""
        self._elsewhere: set[str] = set()
        """Other files that hold ancestors of what is validly signed."""

    def report(self) -> TrustReport:
        problems = tuple(problem for found in reversed(self._problems) for problem in found)
        notes = [
            f"{path}: holds ancestors; their rows are covered, and verifying that file checks the bytes of its contents"
            for path in sorted(self._elsewhere)
        ]
        return TrustReport(tuple(reversed(self._valid)), problems, (*reversed(self._notes), *notes))

    @cached_property
    def _sound_until(self) -> int:
        return audit.sound_until(self._database)

    @cached_property
    def _merged(self) -> dict[str, int]:
        """By UUID, the audit row that tells of the merge with which a version came into the file."""
        found: dict[str, int] = {}
        for number, detail in self._database.query("SELECT id, detail FROM audit WHERE action = 'merge' ORDER BY id"):
            try:
                found |= {str(one["uuid"]): number for one in json.loads(detail)["versions"]}
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
        return found

    def note(self, text: str) -> None:
        self._notes.append(text)

    def check(self, version: Control) -> None:
        number = version.version
        try:
            rows = signature.of(self._database, version.uuid)
            ours = [row for row in rows if row.public_key in self._trusted]
            if not ours:
                by = ", ".join(row.public_key.hex() for row in rows[:_MOST_NAMED])
                other = f" (it is signed by {by})" if by else ""
                self._problems.append([Problem(f"version {number}: is not signed by a key that is trusted{other}")])
                return
            findings = [list(self._examine(version, row)) for row in ours]
        except SqlimageError as problem:
            self._problems.append([Problem(f"version {number}: {problem.message}")])
            return
        for row, found in zip(ours, findings, strict=True):
            if not found:
                statement = Statement.parse(row.statement)
                self._valid.append(ValidSignature(number, version.uuid, row.public_key, statement.at, statement.digest))
                self._note_merge(version, statement)
                self._note_files(version)
        if all(findings):
            self._problems.append([Problem(f"version {number}: {what}") for what in findings[0]])
        else:
            self._notes += [
                f"version {number}: the signature by {row.public_key.hex()} does not hold: {found[0]}"
                for row, found in zip(ours, findings, strict=True)
                if found
            ]

    def check_what_is_gone(self) -> None:
        """No version at all is signed, or one was that is not there and of which the trail does not say why."""
        if not self._valid and not self._problems:
            self._problems.append([Problem("there is no sealed version, so nothing that is signed")])
        explained: set[object] = set()
        try:
            for version, action, detail in self._database.query(_GONE):
                explained |= {version} if action == "prune" else _squashed(detail)
            gone = [row for row in self._database.query(_SIGNED_AND_GONE) if row[0] not in explained]
        except FormatError as problem:
            self._problems.insert(0, [Problem(problem.message)])
            return
        for version, number in gone:
            what = f"version {version}: was signed (audit row {number}) and is not there any more"
            self._problems.insert(0, [Problem(what)])

    def _examine(self, version: Control, row: SignatureRow) -> Iterator[str]:
        """What is wrong with a signature of a version."""
        try:
            statement = _stated(row, version.uuid)
        except FormatError as problem:
            yield problem.message
            return
        found = self._fingerprints.of(self._database, version)
        if found.digest != statement.digest:
            since = self._changed_since(version, statement)
            unlike = [f"{what} differs from what was signed at {statement.at}" for what in _unlike(statement, found)]
            unlike += self._unlike_above(statement, found)
            yield from (f"{what}{since}" for what in unlike or [f"is not what was signed at {statement.at}"])
        if not self._is_labelled(version.label, statement.label):
            yield f"its label {version.label!r} is not the one that was signed at {statement.at}"
        yield from self._unlike_audit(version, statement)
        for number in self._signed_later(version, statement, row.public_key):
            yield f"was signed anew by the same key (audit row {number}); this is an older signature, of {statement.at}"

    def _signed_later(self, version: Control, statement: Statement, key: bytes) -> Iterator[int]:
        """The newest audit row that tells of a later signature by the same key, which replaced this one."""
        last = self._database.row(_ABOUT, [version.version, statement.audit.rows - 1])
        for number, detail in self._database.query(_LATER, [version.version, last[0]]) if last else ():
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                if json.loads(detail)["public_key"] == key.hex():
                    yield number
                    return

    def _changed_since(self, version: Control, statement: Statement) -> str:
        """What the audit trail tells of a change since."""
        signed = self._database.row(_ABOUT, [version.version, statement.audit.rows - 1])
        marks = ", ".join("?" * len(_CHANGING))
        row = signed and self._database.row(_SINCE.format(marks), [version.version, signed[0], *_CHANGING])
        return f"; audit row {row[0]} tells of a change since ({row[2]}, {row[1]})" if row else ""

    def _unlike_above(self, statement: Statement, found: Fingerprint) -> Iterator[str]:
        """What is wrong with the ancestors: for a reader gets clusters and files from them, too."""
        uuid, digest = statement.parent or (None, None)
        if found.control.parent_uuid != uuid:
            yield f"its parent is {found.control.parent_uuid}; when it was signed at {statement.at} it was {uuid}"
        elif found.parent is not None and found.parent.digest != digest:
            why = self._why_unlike(found.parent)
            yield f"its parent {uuid} in {found.parent.path} is not the one that was signed at {statement.at}{why}"

    def _why_unlike(self, above: Fingerprint | None) -> str:
        """What signatures of an ancestor, or of its own ancestors, tell of what differs, if there are any."""
        passed: list[Fingerprint] = []
        why, one = "", above
        while one is not None and not why:
            if one.digest in self._why:
                why = self._why[one.digest]
                break
            passed.append(one)
            why, one = self._told_of(one), one.parent
        self._why |= dict.fromkeys((each.digest for each in passed), why)
        return why

    def _told_of(self, ancestor: Fingerprint) -> str:
        """Which part of an ancestor is not what a signature of its own says."""
        with Database.open(ancestor.path, structure_only=True) as database:
            rows = signature.of(database, ancestor.control.uuid)
        for row in rows:
            if row.public_key in self._trusted:
                with suppress(FormatError):
                    for what in _unlike(_stated(row, ancestor.control.uuid), ancestor):
                        return f": {what} of {ancestor.control.uuid} differs"
        return ""

    def _is_labelled(self, label: str | None, signed: bytes) -> bool:
        """Whether it is the label that was signed, or that with the ``~`` and number of a merge."""
        if label_digest(self._database, label) == signed:
            return True
        return label is not None and label_digest(self._database, _ADDED_BY_MERGE.sub("", label)) == signed

    def _unlike_audit(self, version: Control, statement: Statement) -> Iterator[str]:
        head = statement.audit
        if story_digest(self._database, version.version, head.rows) != head.story:
            yield f"the audit rows about it are not those that were signed at {statement.at}"
        if self._is_head_here(statement):
            if head.id > self._sound_until:
                yield f"the audit trail does not hold from row 1 to row {head.id}, which was signed at {statement.at}"
        elif not self._came_by_merge(version):
            last, _ = audit.head(self._database)
            if last < head.id:
                yield f"audit row {head.id}, signed at {statement.at}, is gone: the trail ends with row {last}"
            else:
                yield f"audit row {head.id} is not the one that was signed at {statement.at}"

    def _is_head_here(self, statement: Statement) -> bool:
        row = self._database.row("SELECT hash FROM audit WHERE id = ?", [statement.audit.id])
        return row is not None and head_digest(self._database, row[0]) == statement.audit.hash

    def _came_by_merge(self, version: Control) -> bool:
        """Whether a merge brought a version: then the trail that was signed is that of another file. What is merged has
        its parent in the file, so no file can claim it of all its versions."""
        row = self._merged.get(version.uuid)
        above = control.by_uuid(self._database, version.parent_uuid) if version.parent_uuid else None
        return row is not None and row <= self._sound_until and above is not None

    def _note_merge(self, version: Control, statement: Statement) -> None:
        if not self._is_head_here(statement):
            self._notes.append(
                f"version {version.version}: was signed in another file and merged; of the audit trail the rows about "
                "it are covered, others only once it is signed here"
            )

    def _note_files(self, version: Control) -> None:
        one: Fingerprint | None = self._fingerprints.of(self._database, version)
        while one is not None:
            if one.path != self._database.path:
                self._elsewhere.add(one.path)
            one = one.parent


def _stated(row: SignatureRow, uuid: str) -> Statement:
    """What a signature states. Raises :class:`~sqlimage.errors.FormatError` unless it is one, and of that version."""
    if not is_signed(row.public_key, row.statement, row.signature):
        raise FormatError(f"signature {row.id} by {row.public_key.hex()} does not match what it states")
    statement = Statement.parse(row.statement)
    if statement.version != uuid:
        raise FormatError(f"signature {row.id} is of version {statement.version}")
    return statement


def _squashed(detail: str) -> set[object]:
    """The numbers of the versions that are gone, from an audit row that tells of a squash."""
    try:
        return {one["version"] for one in json.loads(detail)["squashed"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()


def _unlike(statement: Statement, found: Fingerprint) -> Iterator[str]:
    """The parts of a version itself that differ from what was signed."""
    for name, digest in found.parts.items():
        if statement.parts[name] != digest:
            yield _NAMES[name]
