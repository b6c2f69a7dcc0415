"""The SQL of the format and its specification, as files."""
