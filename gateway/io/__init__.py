"""The shells of the gateway: the only place where it touches sockets, files, clocks and threads."""
