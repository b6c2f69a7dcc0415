"""An image at work: its versions and edits brought together with the servers, mounts and machines that use them."""
