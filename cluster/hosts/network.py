"""Addresses, interfaces and ports of this host."""

import socket

import psutil

from configs.errors import ClusterError, ResourceError

__all__ = ["address_towards", "find_interface", "free_port", "interface_address", "interface_of", "reaches"]


_LAST_PORT = 65535


def interface_address(name: str) -> str:
    """The IPv4 address of a network interface. Raises ResourceError naming those that there are."""
    interfaces = psutil.net_if_addrs()
    for entry in interfaces.get(name, []):
        if entry.family == socket.AF_INET:
            return entry.address
    known = ", ".join(sorted(interfaces))
    raise ResourceError(
        f"slurm.interface is {name}, which has no IPv4 address on {socket.gethostname()}; known: {known}"
    )


def interface_of(address: str) -> str:
    """The interface that has `address`. Raises ResourceError."""
    name = find_interface(address)
    if name is None:
        raise ResourceError(f"no network interface of {socket.gethostname()} has the address {address}")
    return name


def find_interface(address: str) -> str | None:
    """The network interface of this host that has `address`; None where none has, as behind a translated address."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, entries in interfaces if any(entry.address == address for entry in entries)), None)


def address_towards(host: str) -> str:
    """This host's own address on the way to `host`; nothing is sent. Raises OSError where no way leads there."""
    # Connecting a datagram socket only asks the routing table.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        address: str = probe.getsockname()[0]
        return address


def free_port(address: str) -> int:
    """A port of `address` that nobody listens on at this moment; somebody may before it is used."""
    with socket.create_server((address, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def reaches(address: str, timeout_s: float) -> bool:
    """Whether something listens at HOST:PORT and the network leads there. Raises ClusterError for another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise ClusterError(f"address {address!r} is no HOST:PORT, as head:6379")
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except OSError:
        return False
    return True
