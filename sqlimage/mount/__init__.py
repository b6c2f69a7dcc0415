"""An image in the file tree: FUSE, and the file systems mounted on top of it."""
