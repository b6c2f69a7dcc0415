"""The streams of an image: how the file is opened, checked and transacted, and typed access to each table."""
