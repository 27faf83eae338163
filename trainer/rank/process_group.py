"""Joins the workers into one torch process group, at a socket that rank 0 opens on its own address."""

import os
import socket
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from cluster.forks.child_end import ShellConnection

__all__ = ["join"]


COLLECTIVE_TIMEOUT = timedelta(seconds=600)  # a hang is noticed long before, by cluster/workers/hang_rule.py
_MEET_S = 120.0


def join(shell: ShellConnection) -> None:
    """Raises TimeoutError when rank 0 does not come up.

    torch's rendezvous asks for no password and, left to itself, listens on every address.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listener = socket.create_server((os.environ["STOKER_HOST_IP"], 0)) if rank == 0 else None
    host, port = shell.meet(listener.getsockname()[1] if listener else None, _MEET_S)
    own = listener.detach() if listener else None
    store = TCPStore(host, port, world, is_master=rank == 0, timeout=COLLECTIVE_TIMEOUT, master_listen_fd=own)
    dist.init_process_group(
        os.environ["STOKER_BACKEND"], store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT
    )
