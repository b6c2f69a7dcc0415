"""sqlimage: a volume image that is a database.

The public interface. Everything else in the package may change without notice::

    import sqlimage

    sqlimage.capture("disk.img", "disk.sqlimage", label="golden")
    with sqlimage.Image.open("disk.sqlimage") as image:
        version = image.version("golden")
        version.driver().read(0, 512)
        sqlimage.restore(version, "copy.img")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sqlimage.errors import (
    DamagedError,
    DeviceError,
    FormatError,
    InconsistentVolume,
    LockedError,
    NotFoundError,
    RefusedError,
    SqlimageError,
    UsageError,
)
from sqlimage.image import elsewhere
from sqlimage.tool import VERSION as __version__

if TYPE_CHECKING:
    from sqlimage.boot import Machine
    from sqlimage.catalog import Found, find
    from sqlimage.codec.ed25519 import SigningKey, read_public_key
    from sqlimage.codec.keyfiles import (
        generate_identity,
        passphrase,
        read_identity,
        read_key_file,
        read_passphrase,
        read_recipient,
    )
    from sqlimage.codec.keyring import keyring
    from sqlimage.codec.ways import KeyFile, Passphrase, Recipient, Way
    from sqlimage.device import BlockDevice, DeviceExtent, WritableDevice
    from sqlimage.filesystem.contract import Content, read_all
    from sqlimage.fixup import Fixup
    from sqlimage.image.changes import Change
    from sqlimage.image.chunks import Cache
    from sqlimage.image.driver import ImageDriver
    from sqlimage.image.edit import Edit, EditReport
    from sqlimage.image.edit_driver import EditDriver
    from sqlimage.image.edits import Unfinished
    from sqlimage.image.image import Image, Version
    from sqlimage.image.key_slots import SlotInfo, add_slot, change_slot, list_slots, remove_slot
    from sqlimage.image.lineage import SEARCH_VARIABLE
    from sqlimage.image.query import Answer, Query
    from sqlimage.image.verify import Problem, VerifyReport, verify, verify_files
    from sqlimage.journey.capture import capture
    from sqlimage.journey.destination import check_destination
    from sqlimage.journey.explain import ExplainedVolume, Explanation, explain_capture, explain_restore
    from sqlimage.journey.extract import ExtractReport, extract
    from sqlimage.journey.presets import PRESETS
    from sqlimage.journey.resize import parse_target_size
    from sqlimage.journey.restore import RestoreReport, restore
    from sqlimage.journey.story import CaptureReport, VolumeReport
    from sqlimage.media.file import FileDevice, WritableFileDevice
    from sqlimage.media.geometry import Geometry
    from sqlimage.media.memory import MemoryDevice
    from sqlimage.media.partition import Partition, PartitionTable, read_partition_table
    from sqlimage.media.window import Window, WritableWindow
    from sqlimage.nbd.tls import TlsSettings
    from sqlimage.session.boot import boot_image
    from sqlimage.session.change import Changes, changing
    from sqlimage.session.mount import mount, unmount
    from sqlimage.session.serve import serve
    from sqlimage.session.work import Outcome
    from sqlimage.streams.audit import AuditRow
    from sqlimage.streams.control import Control, Volume
    from sqlimage.streams.database import recover
    from sqlimage.streams.files import Extent, FileRow
    from sqlimage.streams.properties import parse as parse_property
    from sqlimage.transfer.opening import local_image
    from sqlimage.transfer.pipe import ReceiveReport, SendReport, receive, send
    from sqlimage.transfer.pull import PullReport
    from sqlimage.transfer.push import PushReport
    from sqlimage.transfer.stores.address import is_url, without_userinfo
    from sqlimage.transfer.travel import fetched, join, pull, push, resume_pull, split
    from sqlimage.units import format_size, parse_size
    from sqlimage.versions.compact import CompactReport, compact
    from sqlimage.versions.diff import ClusterRun, Difference, diff
    from sqlimage.versions.flatten import FlattenReport, flatten
    from sqlimage.versions.merge import MergedVersion, MergeReport, merge
    from sqlimage.versions.prune import PruneReport, prune
    from sqlimage.versions.rebase import RebaseReport, rebase
    from sqlimage.versions.sign import SignedVersion, SignReport, sign
    from sqlimage.versions.squash import SquashReport, squash
    from sqlimage.versions.tree import Branch, Descendant, Tree, version_tree
    from sqlimage.versions.trust import TrustReport, ValidSignature, verify_signatures

# Where each name lives. They are imported when first asked for: numpy alone costs more than most commands.
_HOMES = {
    "catalog": ("Found", "find"),
    "codec.ed25519": ("SigningKey", "read_public_key"),
    "codec.keyfiles": (
        "generate_identity",
        "passphrase",
        "read_identity",
        "read_key_file",
        "read_passphrase",
        "read_recipient",
    ),
    "codec.keyring": ("keyring",),
    "codec.ways": ("KeyFile", "Passphrase", "Recipient", "Way"),
    "image.key_slots": ("SlotInfo", "add_slot", "change_slot", "list_slots", "remove_slot"),
    "device": ("BlockDevice", "DeviceExtent", "WritableDevice"),
    "filesystem.contract": ("Content", "read_all"),
    "boot": ("Machine",),
    "image.changes": ("Change",),
    "image.chunks": ("Cache",),
    "image.driver": ("ImageDriver",),
    "image.edit": ("Edit", "EditReport"),
    "image.edit_driver": ("EditDriver",),
    "image.edits": ("Unfinished",),
    "image.image": ("Image", "Version"),
    "image.lineage": ("SEARCH_VARIABLE",),
    "image.query": ("Answer", "Query"),
    "image.verify": ("Problem", "VerifyReport", "verify", "verify_files"),
    "journey.capture": ("capture",),
    "journey.destination": ("check_destination",),
    "journey.explain": ("ExplainedVolume", "Explanation", "explain_capture", "explain_restore"),
    "journey.extract": ("ExtractReport", "extract"),
    "journey.presets": ("PRESETS",),
    "fixup": ("Fixup",),
    "journey.resize": ("parse_target_size",),
    "journey.restore": ("RestoreReport", "restore"),
    "journey.story": ("CaptureReport", "VolumeReport"),
    "media.file": ("FileDevice", "WritableFileDevice"),
    "media.geometry": ("Geometry",),
    "media.memory": ("MemoryDevice",),
    "media.partition": ("Partition", "PartitionTable", "read_partition_table"),
    "media.window": ("Window", "WritableWindow"),
    "nbd.tls": ("TlsSettings",),
    "session.boot": ("boot_image",),
    "session.change": ("Changes", "changing"),
    "session.mount": ("mount", "unmount"),
    "session.serve": ("serve",),
    "session.work": ("Outcome",),
    "streams.audit": ("AuditRow",),
    "streams.control": ("Control", "Volume"),
    "streams.database": ("recover",),
    "streams.files": ("Extent", "FileRow"),
    "transfer.opening": ("local_image",),
    "transfer.pipe": ("ReceiveReport", "SendReport", "receive", "send"),
    "transfer.pull": ("PullReport",),
    "transfer.push": ("PushReport",),
    "transfer.stores.address": ("is_url", "without_userinfo"),
    "transfer.travel": ("fetched", "join", "pull", "push", "resume_pull", "split"),
    "units": ("format_size", "parse_size"),
    "versions.compact": ("CompactReport", "compact"),
    "versions.diff": ("ClusterRun", "Difference", "diff"),
    "versions.flatten": ("FlattenReport", "flatten"),
    "versions.merge": ("MergeReport", "MergedVersion", "merge"),
    "versions.prune": ("PruneReport", "prune"),
    "versions.rebase": ("RebaseReport", "rebase"),
    "versions.sign": ("SignReport", "SignedVersion", "sign"),
    "versions.squash": ("SquashReport", "squash"),
    "versions.tree": ("Branch", "Descendant", "Tree", "version_tree"),
    "versions.trust": ("TrustReport", "ValidSignature", "verify_signatures"),
}
_HOME_OF = {name: (home, name) for home, names in _HOMES.items() for name in names}
_HOME_OF["parse_property"] = ("streams.properties", "parse")

__all__ = [
    "PRESETS",
    "SEARCH_VARIABLE",
    "Answer",
    "AuditRow",
    "BlockDevice",
    "Branch",
    "Cache",
    "CaptureReport",
    "Change",
    "Changes",
    "ClusterRun",
    "CompactReport",
    "Content",
    "Control",
    "DamagedError",
    "Descendant",
    "DeviceError",
    "DeviceExtent",
    "Difference",
    "Edit",
    "EditDriver",
    "EditReport",
    "ExplainedVolume",
    "Explanation",
    "Extent",
    "ExtractReport",
    "FileDevice",
    "FileRow",
    "Fixup",
    "FlattenReport",
    "FormatError",
    "Found",
    "Geometry",
    "Image",
    "ImageDriver",
    "InconsistentVolume",
    "KeyFile",
    "LockedError",
    "Machine",
    "MemoryDevice",
    "MergeReport",
    "MergedVersion",
    "NotFoundError",
    "Outcome",
    "Partition",
    "PartitionTable",
    "Passphrase",
    "Problem",
    "PruneReport",
    "PullReport",
    "PushReport",
    "Query",
    "RebaseReport",
    "ReceiveReport",
    "Recipient",
    "RefusedError",
    "RestoreReport",
    "SendReport",
    "SignReport",
    "SignedVersion",
    "SigningKey",
    "SlotInfo",
    "SqlimageError",
    "SquashReport",
    "TlsSettings",
    "Tree",
    "TrustReport",
    "Unfinished",
    "UsageError",
    "ValidSignature",
    "VerifyReport",
    "Version",
    "Volume",
    "VolumeReport",
    "Way",
    "Window",
    "WritableDevice",
    "WritableFileDevice",
    "WritableWindow",
    "__version__",
    "add_slot",
    "boot_image",
    "capture",
    "change_slot",
    "changing",
    "check_destination",
    "compact",
    "diff",
    "explain_capture",
    "explain_restore",
    "extract",
    "fetched",
    "find",
    "flatten",
    "format_size",
    "generate_identity",
    "is_url",
    "join",
    "keyring",
    "list_slots",
    "local_image",
    "merge",
    "mount",
    "open",
    "parse_property",
    "parse_size",
    "parse_target_size",
    "passphrase",
    "prune",
    "pull",
    "push",
    "read_all",
    "read_identity",
    "read_key_file",
    "read_partition_table",
    "read_passphrase",
    "read_public_key",
    "read_recipient",
    "rebase",
    "receive",
    "recover",
    "remove_slot",
    "restore",
    "resume_pull",
    "send",
    "serve",
    "sign",
    "split",
    "squash",
    "unmount",
    "verify",
    "verify_files",
    "verify_signatures",
    "version_tree",
    "without_userinfo",
]


def open(path: str, *, writable: bool = False) -> Image:  # noqa: A001  # the field's word for it
    """Open an image file: :meth:`Image.open`."""
    from sqlimage.image.image import Image

    return Image.open(path, writable=writable)


def _origin_of(path: str) -> elsewhere.Origin | None:
    """Where the rest of an image comes from that is here in part."""
    from sqlimage.transfer.opening import origin_of_partial

    return origin_of_partial(path)


elsewhere.find_with(_origin_of)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sqlimage' has no attribute {name!r}")
    home, inside = _HOME_OF[name]
    return getattr(import_module(f"sqlimage.{home}"), inside)
