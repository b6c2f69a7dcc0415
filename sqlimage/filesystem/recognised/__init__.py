"""Volumes whose kind is known but whose files are not read: XFS, btrfs, swap areas, and many by their signature."""

from sqlimage.filesystem.recognised.probe import recognise, recognise_member
from sqlimage.filesystem.recognised.swap import SwapArea, swap_header

__all__ = ["SwapArea", "recognise", "recognise_member", "swap_header"]
