"""Devices that are not images: files, block devices, memory, windows, partition tables."""
