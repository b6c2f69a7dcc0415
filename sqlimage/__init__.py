"""sqlimage: a volume image that is a database."""
