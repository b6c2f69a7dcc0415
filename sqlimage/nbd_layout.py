"""Numbers and messages of the NBD protocol, for the server (:mod:`sqlimage.nbd`) and for the client that reads other
image formats (:mod:`sqlimage.media.foreign`). Constants only.

Document: ``doc/proto.md`` of the NetworkBlockDevice project, whose names are used here. All numbers travel big-endian;
offsets and lengths are in bytes.
"""

from __future__ import annotations

import struct

DEFAULT_PORT = 10809

# Handshake
NBDMAGIC = 0x4E42444D41474943
"""``NBDMAGIC``"""
IHAVEOPT = 0x49484156454F5054
"""``IHAVEOPT``"""
GREETING = struct.Struct(">QQH")
"""NBDMAGIC, IHAVEOPT, handshake flags."""
NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
NBD_FLAG_NO_ZEROES = 1 << 1
CLIENT_FLAGS = struct.Struct(">I")
NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
NBD_FLAG_C_NO_ZEROES = 1 << 1

# Options
OPTION = struct.Struct(">QII")
"""IHAVEOPT, option, length of the data that follows (bytes)."""
NBD_OPT_EXPORT_NAME = 1
NBD_OPT_ABORT = 2
NBD_OPT_LIST = 3
NBD_OPT_STARTTLS = 5
NBD_OPT_INFO = 6
NBD_OPT_GO = 7
NBD_OPT_STRUCTURED_REPLY = 8
NBD_OPT_LIST_META_CONTEXT = 9
NBD_OPT_SET_META_CONTEXT = 10
NBD_OPT_EXTENDED_HEADERS = 11

OPTION_REPLY = struct.Struct(">QIII")
"""Magic, the option answered, reply type, length of the data that follows (bytes)."""
OPTION_REPLY_MAGIC = 0x0003E889045565A9
NBD_REP_ACK = 1
NBD_REP_SERVER = 2
NBD_REP_INFO = 3
NBD_REP_META_CONTEXT = 4
NBD_REP_FLAG_ERROR = 1 << 31
NBD_REP_ERR_UNSUP = NBD_REP_FLAG_ERROR + 1
NBD_REP_ERR_POLICY = NBD_REP_FLAG_ERROR + 2
NBD_REP_ERR_INVALID = NBD_REP_FLAG_ERROR + 3
NBD_REP_ERR_TLS_REQD = NBD_REP_FLAG_ERROR + 5
NBD_REP_ERR_UNKNOWN = NBD_REP_FLAG_ERROR + 6
NBD_REP_ERR_TOO_BIG = NBD_REP_FLAG_ERROR + 9

LENGTH = struct.Struct(">I")
"""The length (bytes) or number of what follows; also a metadata context id."""
EXPORT = struct.Struct(">QH")
"""Answer to NBD_OPT_EXPORT_NAME: size (bytes), transmission flags; then zeros unless NBD_FLAG_C_NO_ZEROES."""
EXPORT_NAME_ZEROES = 124
INFO_TYPE = struct.Struct(">H")
NBD_INFO_EXPORT = 0
NBD_INFO_NAME = 1
NBD_INFO_DESCRIPTION = 2
NBD_INFO_BLOCK_SIZE = 3
INFO_EXPORT = struct.Struct(">HQH")
"""NBD_INFO_EXPORT, size (bytes), transmission flags."""
INFO_BLOCK_SIZE = struct.Struct(">HIII")
"""NBD_INFO_BLOCK_SIZE, then minimum, preferred and maximum block size (bytes)."""

NBD_FLAG_HAS_FLAGS = 1 << 0
NBD_FLAG_READ_ONLY = 1 << 1
NBD_FLAG_SEND_FLUSH = 1 << 2
NBD_FLAG_SEND_FUA = 1 << 3
NBD_FLAG_SEND_TRIM = 1 << 5
NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
NBD_FLAG_SEND_DF = 1 << 7
NBD_FLAG_CAN_MULTI_CONN = 1 << 8
NBD_FLAG_SEND_CACHE = 1 << 10

BASE_ALLOCATION = b"base:allocation"
NBD_STATE_HOLE = 1 << 0
NBD_STATE_ZERO = 1 << 1

# Transmission
REQUEST = struct.Struct(">IHHQQI")
"""NBD_REQUEST_MAGIC, command flags, type, cookie, offset (bytes), length (bytes)."""
NBD_REQUEST_MAGIC = 0x25609513
NBD_CMD_READ = 0
NBD_CMD_WRITE = 1
NBD_CMD_DISC = 2
NBD_CMD_FLUSH = 3
NBD_CMD_TRIM = 4
NBD_CMD_CACHE = 5
NBD_CMD_WRITE_ZEROES = 6
NBD_CMD_BLOCK_STATUS = 7
NBD_CMD_FLAG_FUA = 1 << 0
NBD_CMD_FLAG_NO_HOLE = 1 << 1
NBD_CMD_FLAG_DF = 1 << 2
NBD_CMD_FLAG_REQ_ONE = 1 << 3

SIMPLE_REPLY = struct.Struct(">IIQ")
"""NBD_SIMPLE_REPLY_MAGIC, error, cookie; then the data of a read."""
NBD_SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK = struct.Struct(">IHHQI")
"""NBD_STRUCTURED_REPLY_MAGIC, flags, type, cookie, length of the payload (bytes)."""
NBD_STRUCTURED_REPLY_MAGIC = 0x668E33EF
NBD_REPLY_FLAG_DONE = 1 << 0
NBD_REPLY_TYPE_NONE = 0
NBD_REPLY_TYPE_OFFSET_DATA = 1
NBD_REPLY_TYPE_OFFSET_HOLE = 2
NBD_REPLY_TYPE_BLOCK_STATUS = 5
NBD_REPLY_TYPE_ERROR = (1 << 15) + 1
CHUNK_OFFSET_DATA = struct.Struct(">IHHQIQ")
"""A chunk's header, then offset (bytes); the data follows."""
CHUNK_OFFSET_HOLE = struct.Struct(">IHHQIQI")
"""A chunk's header, then offset and length of the hole (bytes)."""
CHUNK_ERROR = struct.Struct(">IHHQIIH")
"""A chunk's header, then error and length of the message (bytes)."""
STATUS_DESCRIPTOR = struct.Struct(">II")
"""Length (bytes), NBD_STATE flags."""

NBD_EPERM = 1
NBD_EIO = 5
NBD_EINVAL = 22
NBD_ENOSPC = 28
NBD_ESHUTDOWN = 108
