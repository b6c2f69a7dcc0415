"""``sqlimage info``."""

from __future__ import annotations

import dataclasses
import os

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, PlaceArgument, opened, split_place
from .output import print_json, print_pairs, print_table

EXAMPLE = "sqlimage info laptop.sqlimage@golden"


def command(image: PlaceArgument, json: JsonOption = False) -> None:
    """Show what an image is: its versions, its medium, its volumes, its properties."""
    with opened(image) as version:
        control, volumes, properties = version.control, version.volumes(), version.properties()
        versions = [other.control for other in version.image.versions()]
        signers = [key.hex() for key in version.signers()]
        is_whole = version.image.is_encrypted_whole
        place = split_place(image)[0]
        path = place if sqlimage.is_url(place) else version.image.path
        image_bytes, allocated = (
            os.path.getsize(version.image.path),
            version.allocated().total * control.bytes_per_cluster,
        )
    if json:
        print_json(
            {
                "image": path,
                "image_bytes": image_bytes,
                **dataclasses.asdict(control),
                "allocated_bytes": min(allocated, control.medium_bytes),
                "volumes": volumes,
                "properties": properties,
                "encrypted_whole": is_whole,
                "signed_by": signers,
                "versions": versions,
            }
        )
        return
    encryption = control.encryption
    if encryption != "none":
        encryption += ", as a whole" if is_whole else f", by file: {properties.get('capture.encrypt', '')!s}"
    shape = (control.cylinders, control.tracks_per_cylinder, control.sectors_per_track)
    print_pairs(
        [
            ("image", f"{path} ({format_size(image_bytes)})"),
            ("version", f"{control.version}" + (f" ({control.label})" if control.label else "") + f", {control.state}"),
            ("uuid", control.uuid),
            ("parent", control.parent_uuid),
            ("captured", f"{control.created_at} from {control.source}" if control.source else None),
            ("begun", None if control.source else control.created_at),
            ("medium", f"{format_size(control.medium_bytes)} ({control.medium_bytes} bytes)"),
            ("cluster", format_size(control.bytes_per_cluster)),
            ("sector", format_size(control.bytes_per_sector)),
            ("geometry", "/".join(map(str, shape)) if None not in shape else None),
            ("partition table", control.partition_scheme),
            ("allocated", format_size(min(allocated, control.medium_bytes))),
            ("compression", control.compression),
            ("encryption", encryption),
            ("signed by", f"{', '.join(signers)} (`sqlimage verify --trust` proves it)" if signers else None),
        ]
    )
    print()
    print_table(
        ["volume", "offset", "length", "file system", "label", "serial", "cluster", "hidden sectors", "state", "taken"],
        (
            (
                volume.number,
                format_size(volume.offset_clusters * control.bytes_per_cluster),
                format_size(volume.length_bytes),
                volume.file_system,
                volume.label,
                volume.serial,
                format_size(volume.bytes_per_cluster) if volume.bytes_per_cluster else None,
                volume.hidden_sectors,
                _state(volume),
                volume.captured_as + (f": {volume.raw_reason}" if volume.raw_reason else ""),
            )
            for volume in volumes
        ),
    )
    if properties:
        print()
        print_pairs(sorted(properties.items()))
    if len(versions) > 1:
        print()
        print_table(
            ["version", "label", "uuid", "parent", "state", "created"],
            ((v.version, v.label, v.uuid, v.parent_uuid, v.state, v.created_at) for v in versions),
        )


def _state(volume: sqlimage.Volume) -> str | None:
    if volume.dirty is None:
        return None
    return " ".join(n for n, on in (("dirty", volume.dirty), ("hibernated", volume.hibernated)) if on) or "clean"
