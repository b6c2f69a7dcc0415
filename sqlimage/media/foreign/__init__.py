"""Disks in formats of virtual machines, read and written through ``qemu-nbd``: qcow2, VHD, VHDX, VMDK, VDI and more."""
