"""Ports for servers that tests start and that do not choose one themselves."""

import random
import socket

# Below those that Linux and macOS give to outgoing connections and to servers that ask for any port: what is free now
# is free when the server is up, seconds later. The embedded Postgres chooses from 20,000 on.
_PORTS = range(11_000, 20_000)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port of {_PORTS} is free")


def is_listening(port: int) -> bool:
    """Whether somebody answers on a port of 127.0.0.1; costs less than asking for a page."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
