"""Which format a file is in, decided by us from its own bytes; a raw disk is what is none of the others."""

from __future__ import annotations

from sqlimage.errors import RefusedError
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign import headers, layout
from sqlimage.media.foreign.formats import FORMATS, Format
from sqlimage.media.foreign.found import Found, head
from sqlimage.media.foreign.headers import Look, Recognise
from sqlimage.media.foreign.vhdx import is_vhdx, look_at_vhdx
from sqlimage.media.foreign.vmdk import is_vmdk, look_at_vmdk

AS_IT_IS = "`--format raw` takes the file as it is"

_READERS: dict[str, tuple[Recognise, Look]] = {
    "qcow2": (headers.is_qcow2, headers.look_at_qcow2),
    "qcow": (headers.is_qcow, headers.look_at_qcow),
    "qed": (headers.is_qed, headers.look_at_qed),
    "vhd": (headers.is_vhd, headers.look_at_vhd),
    "vhdx": (is_vhdx, look_at_vhdx),
    "vmdk": (is_vmdk, look_at_vmdk),
    "vdi": (headers.is_vdi, headers.look_at_vdi),
    "parallels": (headers.is_parallels, headers.look_at_parallels),
    "bochs": (headers.is_bochs, headers.look_at_bochs),
    "cloop": (headers.is_cloop, headers.look_at_cloop),
    "dmg": (headers.is_dmg, headers.look_at_dmg),
}


def probe(file: FileDevice) -> Format | None:
    """The format of a file, None for a raw disk.

    Raises :class:`~sqlimage.errors.RefusedError` for formats that are known but not read, and
    :class:`~sqlimage.errors.DeviceError` where the file cannot be read.
    """
    start = head(file, layout.HEAD_BYTES)
    if start.startswith(layout.EWF_SIGNATURES):
        raise RefusedError(
            f"{file.path}: is an EnCase (EWF) file, which is not read",
            hint=f"make a raw disk of it with `ewfexport -f raw`; {AS_IT_IS}",
        )
    if start.startswith(layout.AFF_SIGNATURE):
        raise RefusedError(
            f"{file.path}: is an AFF file, which is not read",
            hint=f"make a raw disk of it with `affconvert -r`; {AS_IT_IS}",
        )
    return next((kind for kind in FORMATS if _READERS[kind.name][0](file, start)), None)


def look(file: FileDevice, kind: Format) -> Found:
    """What a file of this format tells of itself; to be closed.

    Raises :class:`~sqlimage.errors.FormatError` where it is not of this format or contradicts itself,
    :class:`~sqlimage.errors.RefusedError` where it needs a parent, another file or a key.
    """
    return _READERS[kind.name][1](file, kind)
