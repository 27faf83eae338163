"""Where the other hosts of a job reach its first one."""

import socket
from collections.abc import Sequence

from cluster.host_network import address_towards, interface_address
from cluster.slurm_queue import Scheduler


def first_address(hosts: Sequence[str], interface: str | None, scheduler: Scheduler) -> str:
    """That of the first host's `interface`, else where Slurm reaches it. Asked there, or without an interface."""
    if interface:
        return interface_address(interface)
    own = socket.gethostbyname(scheduler.node_address(hosts[0]))
    if not own.startswith("127.") or len(hosts) == 1:
        return own
    # Debian's /etc/hosts has the host's own name as 127.0.1.1.
    return address_towards(socket.gethostbyname(scheduler.node_address(hosts[1])))
