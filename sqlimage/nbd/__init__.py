"""An image on the network: the NBD protocol, without I/O, and a server that speaks it."""
