"""What an image can do: be opened, read as a device, looked into, verified."""
