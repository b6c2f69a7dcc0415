"""Fixed newstyle negotiation without I/O: bytes of the client in, bytes of the answer out. See ``doc/proto.md``,
"Handshake phase".

A client says its flags, then options, each answered at once, until one of them chooses an export or ends the
connection. Whatever breaks the protocol's framing closes: there is no way to find the next option after it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from sqlimage import nbd_layout as n
from sqlimage.nbd import limits
from sqlimage.nbd.transmission import Session


@dataclass(frozen=True, slots=True)
class Offer:
    """An export as the negotiation sees it."""

    name: bytes
    description: bytes
    size_bytes: int
    writable: bool


class State(Enum):
    CLIENT_FLAGS = auto()
    """The client's flags are awaited."""
    OPTIONS = auto()
    """An option is awaited."""
    STARTTLS = auto()
    """The caller must now encrypt the connection and call ``tls_started``."""
    TRANSMISSION = auto()
    """``session`` holds what was agreed on, ``rest`` what the client has sent beyond."""
    CLOSED = auto()
    """The caller must send the last answer and close."""


class _Malformed(Exception):
    """An option's payload contradicts itself. Carries the reply type that says so."""

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(message)
        self.reply = reply
        self.message = message


class _Fields:
    """Reads an option's payload from front to back."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def number(self, form: struct.Struct) -> int:
        return int(form.unpack(self.take(form.size))[0])

    def string(self) -> bytes:
        length = self.number(n.LENGTH)
        if length > limits.STRING_BYTES_MAXIMUM:
            raise _Malformed(n.NBD_REP_ERR_TOO_BIG, f"a string may have {limits.STRING_BYTES_MAXIMUM} bytes")
        return self.take(length)

    def take(self, length: int) -> bytes:
        piece = self._payload[self._at : self._at + length]
        if len(piece) < length:
            raise _Malformed(n.NBD_REP_ERR_INVALID, "the option is shorter than its fields say")
        self._at += length
        return piece

    def end(self) -> None:
        if self._at != len(self._payload):
            raise _Malformed(n.NBD_REP_ERR_INVALID, "the option is longer than its fields say")


class Negotiation:
    """One client's negotiation. The first of ``offers`` is also what the empty name means.

    With ``tls`` the client must encrypt before anything else; without, it cannot.
    """

    greeting = n.GREETING.pack(n.NBDMAGIC, n.IHAVEOPT, n.NBD_FLAG_FIXED_NEWSTYLE | n.NBD_FLAG_NO_ZEROES)

    def __init__(self, offers: Sequence[Offer], *, tls: bool = False) -> None:
        self.state = State.CLIENT_FLAGS
        self.session: Session | None = None
        self._offers = tuple(offers)
        self._tls = tls
        self._encrypted = False
        self._no_zeroes = False
        self._options = 0
        self._received = bytearray()
        self._forget()

    def _forget(self) -> None:
        self._structured = False
        self._context_of: int | None = None

    @property
    def rest(self) -> bytes:
        """Bytes received beyond the end of the negotiation."""
        return bytes(self._received)

    def receive(self, data: bytes | memoryview) -> bytes:
        """Take what the client sent, in whatever pieces it came; returns what is to be sent back.

        ``state`` tells what comes next. Never raises, and never holds more than one option and ``data``.
        """
        self._received += data
        answer = b""
        while True:
            if self.state is State.CLIENT_FLAGS and len(self._received) >= n.CLIENT_FLAGS.size:
                self._client_flags(n.CLIENT_FLAGS.unpack(self._consume(n.CLIENT_FLAGS.size))[0])
            elif self.state is State.OPTIONS and len(self._received) >= n.OPTION.size:
                magic, option, length = n.OPTION.unpack_from(self._received)
                if magic != n.IHAVEOPT or self._options == limits.OPTIONS_MAXIMUM:
                    self.state = State.CLOSED
                elif length > limits.OPTION_BYTES_MAXIMUM:
                    answer += _refusal(option, n.NBD_REP_ERR_TOO_BIG, f"at most {limits.OPTION_BYTES_MAXIMUM} bytes")
                    self.state = State.CLOSED
                elif len(self._received) < n.OPTION.size + length:
                    return answer
                else:
                    self._options += 1
                    answer += self._answer(option, self._consume(n.OPTION.size + length)[n.OPTION.size :])
            else:
                return answer

    def tls_started(self) -> None:
        """The connection is encrypted now. What was agreed on before is forgotten: anybody may have said it."""
        assert self.state is State.STARTTLS
        self._encrypted = True
        self._forget()
        self._received.clear()
        self.state = State.OPTIONS

    def _consume(self, length: int) -> bytes:
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _client_flags(self, flags: int) -> None:
        known = n.NBD_FLAG_C_FIXED_NEWSTYLE | n.NBD_FLAG_C_NO_ZEROES
        self._no_zeroes = bool(flags & n.NBD_FLAG_C_NO_ZEROES)
        self.state = State.CLOSED if flags & ~known else State.OPTIONS

    def _answer(self, option: int, payload: bytes) -> bytes:
        if option == n.NBD_OPT_ABORT:
            self.state = State.CLOSED
            return _reply(option, n.NBD_REP_ACK)
        needs_tls = self._tls and not self._encrypted and option != n.NBD_OPT_STARTTLS
        if option == n.NBD_OPT_EXPORT_NAME:
            if needs_tls:  # the one option that cannot be refused
                self.state = State.CLOSED
                return b""
            return self._export_name(payload)
        if needs_tls:
            return _refusal(option, n.NBD_REP_ERR_TLS_REQD, "this server wants TLS first")
        answers = {
            n.NBD_OPT_LIST: self._list,
            n.NBD_OPT_STARTTLS: self._starttls,
            n.NBD_OPT_INFO: self._info,
            n.NBD_OPT_GO: self._info,
            n.NBD_OPT_STRUCTURED_REPLY: self._structured_reply,
            n.NBD_OPT_LIST_META_CONTEXT: self._meta_context,
            n.NBD_OPT_SET_META_CONTEXT: self._meta_context,
        }
        if option not in answers:
            return _refusal(option, n.NBD_REP_ERR_UNSUP, "this server does not know the option")
        try:
            return answers[option](option, _Fields(payload))
        except _Malformed as problem:
            return _refusal(option, problem.reply, problem.message)

    def _export_name(self, name: bytes) -> bytes:
        found = self._find(name)
        if found is None:
            self.state = State.CLOSED
            return b""
        self._enter(found)
        zeroes = b"" if self._no_zeroes else bytes(n.EXPORT_NAME_ZEROES)
        return n.EXPORT.pack(self._offers[found].size_bytes, self._flags(found)) + zeroes

    def _list(self, option: int, fields: _Fields) -> bytes:
        fields.end()
        answer = b"".join(
            _reply(option, n.NBD_REP_SERVER, n.LENGTH.pack(len(offer.name)) + offer.name + offer.description)
            for offer in self._offers
        )
        return answer + _reply(option, n.NBD_REP_ACK)

    def _starttls(self, option: int, fields: _Fields) -> bytes:
        fields.end()
        if not self._tls:
            return _refusal(option, n.NBD_REP_ERR_POLICY, "this server was started without TLS")
        if self._encrypted:
            return _refusal(option, n.NBD_REP_ERR_INVALID, "the connection is encrypted already")
        if self._received:  # said in the clear, to be taken for said in secret: CVE-2021-3716
            self.state = State.CLOSED
            return b""
        self.state = State.STARTTLS
        return _reply(option, n.NBD_REP_ACK)

    def _info(self, option: int, fields: _Fields) -> bytes:
        name = fields.string()
        count = fields.number(n.INFO_TYPE)
        if count > limits.INFO_REQUESTS_MAXIMUM:
            raise _Malformed(n.NBD_REP_ERR_TOO_BIG, f"at most {limits.INFO_REQUESTS_MAXIMUM} informations")
        wanted = {fields.number(n.INFO_TYPE) for _ in range(count)}
        fields.end()
        found = self._find(name)
        if found is None:
            return _refusal(option, n.NBD_REP_ERR_UNKNOWN, "there is no export of this name")
        offer = self._offers[found]
        about = [
            n.INFO_EXPORT.pack(n.NBD_INFO_EXPORT, offer.size_bytes, self._flags(found)),
            n.INFO_BLOCK_SIZE.pack(
                n.NBD_INFO_BLOCK_SIZE,
                limits.BLOCK_BYTES_MINIMUM,
                limits.BLOCK_BYTES_PREFERRED,
                limits.BLOCK_BYTES_MAXIMUM,
            ),
        ]
        if n.NBD_INFO_NAME in wanted:
            about.append(n.INFO_TYPE.pack(n.NBD_INFO_NAME) + offer.name)
        if n.NBD_INFO_DESCRIPTION in wanted and offer.description:
            about.append(n.INFO_TYPE.pack(n.NBD_INFO_DESCRIPTION) + offer.description)
        if option == n.NBD_OPT_GO:
            self._enter(found)
        return b"".join(_reply(option, n.NBD_REP_INFO, piece) for piece in about) + _reply(option, n.NBD_REP_ACK)

    def _structured_reply(self, option: int, fields: _Fields) -> bytes:
        fields.end()
        self._structured = True
        return _reply(option, n.NBD_REP_ACK)

    def _meta_context(self, option: int, fields: _Fields) -> bytes:
        setting = option == n.NBD_OPT_SET_META_CONTEXT
        if setting:
            self._context_of = None  # a selection replaces the one before, also where it fails
        if not self._structured:
            raise _Malformed(n.NBD_REP_ERR_INVALID, "structured replies must be agreed on first")
        name = fields.string()
        count = fields.number(n.LENGTH)
        if count > limits.QUERIES_MAXIMUM:
            raise _Malformed(n.NBD_REP_ERR_TOO_BIG, f"at most {limits.QUERIES_MAXIMUM} queries")
        queries = {fields.string() for _ in range(count)}
        fields.end()
        found = self._find(name)
        if found is None:
            return _refusal(option, n.NBD_REP_ERR_UNKNOWN, "there is no export of this name")
        matches = n.BASE_ALLOCATION in queries or (not setting and (not queries or b"base:" in queries))
        answer = b""
        if matches:
            identity = limits.BASE_ALLOCATION_ID if setting else 0
            answer = _reply(option, n.NBD_REP_META_CONTEXT, n.LENGTH.pack(identity) + n.BASE_ALLOCATION)
            if setting:
                self._context_of = found
        return answer + _reply(option, n.NBD_REP_ACK)

    def _find(self, name: bytes) -> int | None:
        if not name:
            return 0
        return next((at for at, offer in enumerate(self._offers) if offer.name == name), None)

    def _flags(self, export: int) -> int:
        flags = n.NBD_FLAG_HAS_FLAGS | n.NBD_FLAG_SEND_FLUSH | n.NBD_FLAG_SEND_CACHE | n.NBD_FLAG_CAN_MULTI_CONN
        if self._structured:
            flags |= n.NBD_FLAG_SEND_DF
        if self._offers[export].writable:
            return flags | n.NBD_FLAG_SEND_FUA | n.NBD_FLAG_SEND_TRIM | n.NBD_FLAG_SEND_WRITE_ZEROES
        return flags | n.NBD_FLAG_READ_ONLY

    def _enter(self, export: int) -> None:
        offer = self._offers[export]
        allocation = self._context_of == export
        self.session = Session(export, offer.size_bytes, offer.writable, self._structured, allocation)
        self.state = State.TRANSMISSION


def _reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return n.OPTION_REPLY.pack(n.OPTION_REPLY_MAGIC, option, kind, len(payload)) + payload


def _refusal(option: int, kind: int, message: str) -> bytes:
    return _reply(option, kind, message.encode())
