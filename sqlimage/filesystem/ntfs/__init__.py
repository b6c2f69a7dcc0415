"""NTFS, read from an untrusted medium: :class:`~sqlimage.filesystem.ntfs.volume.NtfsVolume`."""
