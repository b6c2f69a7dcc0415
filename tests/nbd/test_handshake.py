"""The negotiation, byte by byte, with no socket in sight."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.nbd.handshake import Negotiation, Offer, State
from sqlimage.nbd.transmission import Session
from tests.nbd.client import GREETING, contexts, go, option, option_reply, string

OFFERS = (Offer(b"disk", b"the first", 0x123456, True), Offer("größe".encode(), b"", 1 << 40, False))
WRITABLE, READ_ONLY = 0x056D, 0x0507
"""Transmission flags before structured replies: 0x80 (DF) comes with them."""
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN, ERR_TOO_BIG = (
    0x80000001, 0x80000002, 0x80000003, 0x80000005, 0x80000006, 0x80000009,
)  # fmt: skip


def begun(*, tls: bool = False, flags: int = 3) -> Negotiation:
    negotiation = Negotiation(OFFERS, tls=tls)
    assert negotiation.receive(struct.pack(">I", flags)) == b""
    return negotiation


def structured() -> Negotiation:
    negotiation = begun()
    assert negotiation.receive(option(8)) == option_reply(8, 1)
    return negotiation


def kinds(answer: bytes) -> list[int]:
    """The reply types of an answer."""
    found = []
    while answer:
        magic, _, kind, length = struct.unpack_from(">QIII", answer)
        assert magic == 0x3E889045565A9
        found.append(kind)
        answer = answer[20 + length :]
    return found


def test_the_server_speaks_first() -> None:
    assert Negotiation.greeting == GREETING


@pytest.mark.parametrize("flags", [4, 1 << 31, 0xFFFFFFFF])
def test_unknown_client_flags_end_the_connection(flags: int) -> None:
    assert begun(flags=flags).state is State.CLOSED


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0)])
def test_export_name_is_answered_with_size_and_flags(flags: int, zeroes: int) -> None:
    negotiation = begun(flags=flags)
    answer = negotiation.receive(option(1, b"disk"))
    assert answer == bytes.fromhex("0000000000123456 056d") + bytes(zeroes)
    assert negotiation.state is State.TRANSMISSION
    assert negotiation.session == Session(0, 0x123456, True, False, False)


def test_export_name_cannot_be_refused_so_an_unknown_one_ends_the_connection() -> None:
    negotiation = begun()
    assert negotiation.receive(option(1, b"other")) == b""
    assert negotiation.state is State.CLOSED
    assert negotiation.session is None


def test_abort_is_acknowledged() -> None:
    negotiation = begun()
    assert negotiation.receive(option(2)) == option_reply(2, 1)
    assert negotiation.state is State.CLOSED


def test_list_names_every_export_with_its_description() -> None:
    assert begun().receive(option(3)) == (
        option_reply(3, 2, b"\0\0\0\x04diskthe first")
        + option_reply(3, 2, b"\0\0\0\x07" + "größe".encode())
        + option_reply(3, 1)
    )


def test_go_tells_size_flags_and_block_sizes_and_begins() -> None:
    negotiation = begun()
    assert negotiation.receive(go("größe".encode())) == (
        option_reply(7, 3, bytes.fromhex("0000 0000010000000000 0507"))
        + option_reply(7, 3, bytes.fromhex("0003 00000001 00001000 02000000"))
        + option_reply(7, 1)
    )
    assert negotiation.session == Session(1, 1 << 40, False, False, False)


def test_info_tells_what_was_asked_for_and_goes_on() -> None:
    negotiation = begun()
    payload = string(b"") + struct.pack(">5H", 4, 1, 2, 3, 99)
    assert negotiation.receive(option(6, payload)) == (
        option_reply(6, 3, bytes.fromhex("0000 0000000000123456 056d"))
        + option_reply(6, 3, bytes.fromhex("0003 00000001 00001000 02000000"))
        + option_reply(6, 3, b"\0\x01disk")
        + option_reply(6, 3, b"\0\x02the first")
        + option_reply(6, 1)
    )
    assert negotiation.state is State.OPTIONS


def test_df_is_offered_only_with_structured_replies() -> None:
    plain, rich = begun(), structured()
    assert plain.receive(go())[20 + 10 : 20 + 12] == struct.pack(">H", WRITABLE)
    assert rich.receive(go())[20 + 10 : 20 + 12] == struct.pack(">H", WRITABLE | 0x80)
    assert rich.session == Session(0, 0x123456, True, True, False)


@pytest.mark.parametrize("number", [6, 7])
def test_an_unknown_export_is_refused_and_the_client_may_try_another(number: int) -> None:
    negotiation = begun()
    assert kinds(negotiation.receive(option(number, string(b"nothing") + b"\0\0"))) == [ERR_UNKNOWN]
    assert negotiation.state is State.OPTIONS
    assert kinds(negotiation.receive(go(b"disk")))[-1] == 1


@pytest.mark.parametrize("number", [0, 4, 11, 12, 0xFFFFFFFF])
def test_unknown_options_are_refused(number: int) -> None:
    negotiation = begun()
    assert kinds(negotiation.receive(option(number, b"whatever"))) == [ERR_UNSUP]
    assert negotiation.state is State.OPTIONS


@pytest.mark.parametrize("number", [3, 5, 8])
def test_options_without_payload_refuse_one(number: int) -> None:
    assert kinds(begun(tls=number == 5).receive(option(number, b"x"))) == [ERR_INVALID]


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        (b"", ERR_INVALID),
        (b"\0\0\0", ERR_INVALID),
        (b"\0\0\0\x05disk\0\0", ERR_INVALID),
        (string(b"disk"), ERR_INVALID),
        (string(b"disk") + b"\0\x02\0\0", ERR_INVALID),
        (string(b"disk") + b"\0\0\0", ERR_INVALID),
        (b"\xff\xff\xff\xff" + b"disk", ERR_TOO_BIG),
        (string(bytes(4097)) + b"\0\0", ERR_TOO_BIG),
        (string(b"disk") + struct.pack(">H", 65) + bytes(130), ERR_TOO_BIG),
        (string(bytes(4096)) + b"\0\0", ERR_UNKNOWN),
    ],
)
def test_payloads_that_contradict_themselves_are_refused(payload: bytes, reply: int) -> None:
    negotiation = begun()
    assert kinds(negotiation.receive(option(7, payload))) == [reply]
    assert negotiation.state is State.OPTIONS


def test_contexts_are_listed() -> None:
    listed = option_reply(9, 4, b"\0\0\0\0base:allocation") + option_reply(9, 1)
    for queries in ((), (b"base:",), (b"base:allocation",), (b"base:allocation", b"base:", b"qemu:dirty")):
        assert structured().receive(contexts(9, b"disk", *queries)) == listed
    assert structured().receive(contexts(9, b"disk", b"qemu:")) == option_reply(9, 1)


def test_a_context_is_selected_by_its_name_and_for_its_export() -> None:
    negotiation = structured()
    chosen = option_reply(10, 4, b"\0\0\0\x01base:allocation") + option_reply(10, 1)
    assert negotiation.receive(contexts(10, b"", b"other:", b"base:allocation", b"base:allocation")) == chosen
    negotiation.receive(go(b"disk"))
    assert negotiation.session is not None
    assert negotiation.session.allocation


@pytest.mark.parametrize(
    "after",
    [
        contexts(10, b"disk"),
        contexts(10, b"disk", b"base:"),
        contexts(10, b"nothing", b"base:allocation"),
        option(10, b"nonsense"),
        contexts(10, "größe".encode(), b"base:allocation"),
    ],
)
def test_a_selection_is_replaced_by_the_next_also_where_that_fails(after: bytes) -> None:
    negotiation = structured()
    negotiation.receive(contexts(10, b"disk", b"base:allocation"))
    negotiation.receive(after)
    negotiation.receive(go(b"disk"))
    assert negotiation.session is not None
    assert not negotiation.session.allocation


def test_contexts_need_structured_replies_and_are_bounded() -> None:
    assert kinds(begun().receive(contexts(10, b"disk", b"base:allocation"))) == [ERR_INVALID]
    assert kinds(structured().receive(contexts(10, b"disk", *[b"q"] * 64)))[-1] == 1
    assert kinds(structured().receive(contexts(10, b"disk", *[b"q"] * 65))) == [ERR_TOO_BIG]
    assert kinds(structured().receive(contexts(10, b"disk", bytes(4097)))) == [ERR_TOO_BIG]
    many = option(10, string(b"disk") + b"\xff\xff\xff\xff")
    assert kinds(structured().receive(many)) == [ERR_TOO_BIG]


@pytest.mark.parametrize("length", [65537, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_option_longer_than_any_ends_the_connection_before_it_is_read(length: int) -> None:
    negotiation = begun()
    assert kinds(negotiation.receive(b"IHAVEOPT" + struct.pack(">II", 7, length))) == [ERR_TOO_BIG]
    assert negotiation.state is State.CLOSED


def test_32_options_and_not_one_more() -> None:
    negotiation = begun()
    assert kinds(negotiation.receive(option(3) * 31)).count(1) == 31
    assert kinds(negotiation.receive(option(3))).count(1) == 1
    assert negotiation.receive(go()) == b""
    assert negotiation.state is State.CLOSED


def test_a_command_before_the_end_of_the_negotiation_ends_the_connection() -> None:
    negotiation = begun()
    assert negotiation.receive(bytes.fromhex("25609513") + bytes(24)) == b""
    assert negotiation.state is State.CLOSED


def test_commands_sent_along_with_the_last_option_are_kept() -> None:
    negotiation = begun()
    negotiation.receive(go() + b"a request")
    assert negotiation.rest == b"a request"


def test_without_tls_starttls_is_refused() -> None:
    assert kinds(begun().receive(option(5))) == [ERR_POLICY]


@pytest.mark.parametrize("number", [3, 6, 7, 8, 9, 10, 11, 99])
def test_with_tls_nothing_else_is_answered_before_it(number: int) -> None:
    negotiation = begun(tls=True)
    assert kinds(negotiation.receive(option(number, string(b"disk") + b"\0\0"))) == [ERR_TLS_REQD]
    assert negotiation.session is None


def test_with_tls_export_name_ends_the_connection_and_abort_is_allowed() -> None:
    negotiation = begun(tls=True)
    assert negotiation.receive(option(1, b"disk")) == b""
    assert negotiation.state is State.CLOSED
    assert begun(tls=True).receive(option(2)) == option_reply(2, 1)


def test_nothing_agreed_on_before_tls_is_kept() -> None:
    negotiation = begun(tls=True)
    negotiation.receive(option(8) + contexts(10, b"disk", b"base:allocation"))
    assert negotiation.receive(option(5)) == option_reply(5, 1)
    assert negotiation.state is State.STARTTLS
    negotiation.tls_started()
    assert kinds(negotiation.receive(option(5))) == [ERR_INVALID]
    assert kinds(negotiation.receive(contexts(10, b"disk", b"base:allocation"))) == [ERR_INVALID]
    negotiation.receive(go())
    assert negotiation.session == Session(0, 0x123456, True, False, False)


def test_what_is_slipped_in_behind_starttls_ends_the_connection() -> None:
    negotiation = begun(tls=True)
    assert negotiation.receive(option(5) + option(8)) == b""
    assert negotiation.state is State.CLOSED


PIECES = st.one_of(
    st.binary(max_size=40),
    st.builds(option, st.integers(0, 12), st.binary(max_size=60)),
    st.builds(lambda length: b"IHAVEOPT" + struct.pack(">II", 7, length), st.integers(0, (1 << 32) - 1)),
    st.builds(go, st.sampled_from([b"", b"disk", b"other"])),
    st.builds(
        lambda number, name, queries: contexts(number, name, *queries),
        st.sampled_from([9, 10]),
        st.sampled_from([b"", b"disk", b"x"]),
        st.lists(st.sampled_from([b"base:", b"base:allocation", b""]), max_size=3),
    ),
    st.just(option(8)),
    st.just(option(5)),
)


@given(st.booleans(), st.lists(PIECES, max_size=40), st.integers(1, 80))
def test_whatever_a_client_says_in_whatever_pieces_the_answers_are_the_same(
    tls: bool, said: list[bytes], step: int
) -> None:
    def talk(pieces: list[bytes]) -> tuple[bytes, State, Session | None]:
        negotiation, answer = begun(tls=tls), b""
        for piece in pieces:
            answer += negotiation.receive(piece)
            assert len(negotiation.rest) <= sum(map(len, pieces))
            if negotiation.state is State.STARTTLS:
                break  # from here on it makes a difference whether more had arrived already
        return answer, negotiation.state, negotiation.session

    stream = b"".join(said)
    if tls and option(5) in stream:
        stream = stream[: stream.index(option(5))]
    answer, state, session = talk([stream])
    assert talk([stream[at : at + step] for at in range(0, len(stream), step)]) == (answer, state, session)
    assert (session is not None) == (state is State.TRANSMISSION)
    if state is not State.TRANSMISSION:
        kinds(answer)
    if tls:
        assert session is None
