"""What this server allows. The protocol leaves these to the implementation, except the length of strings."""

from __future__ import annotations

BASE_ALLOCATION_ID = 1
"""The id this server gives to the context ``base:allocation``; any number would do."""
STRING_BYTES_MAXIMUM = 4096
OPTIONS_MAXIMUM = 32
"""How many options a client may send before it must have chosen an export."""
OPTION_BYTES_MAXIMUM = 65536
QUERIES_MAXIMUM = 64
"""Metadata context queries in one option."""
INFO_REQUESTS_MAXIMUM = 64
BLOCK_BYTES_MINIMUM = 1
BLOCK_BYTES_PREFERRED = 4096
BLOCK_BYTES_MAXIMUM = 33_554_432
"""The largest read or write."""
STATUS_DESCRIPTORS_MAXIMUM = 4096
"""Extents told in one answer to NBD_CMD_BLOCK_STATUS; a client asks again from where it ends."""
HOLE_BYTES_MINIMUM = 4096
"""A shorter hole within a read is sent as zeros: it would cost more messages than it saves bytes."""
