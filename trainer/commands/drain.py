"""`stoker drain`."""

import time
from typing import Annotated, Literal

import typer

from cluster.cloud.spot_notice import is_preempted
from cluster.ray_cluster.drain_node import drain_this_node
from configs.errors import EXIT_FAILED, ClusterError
from trainer.terminal import fail, say

__all__ = ["drain"]


_POLL_S = 5.0
_TELL_S = 600.0

Provider = Literal["aws", "gcp", "azure"]


def drain(
    grace_s: Annotated[int, typer.Option(min=1, help="for the checkpoint, from now to the end of the node")] = 120,
    watch: Annotated[
        Provider | None, typer.Option(help="first wait for this provider's notice that the host is taken away")
    ] = None,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="of the cluster")] = "auto",
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="of the metadata service, if not its own")] = None,
) -> None:
    """On a node of a Ray cluster: the run on it saves a checkpoint and leaves. Returns when the node has ended."""
    if watch is None:
        ended = drain_this_node(address, grace_s, say)
    else:
        await_notice(watch, endpoint)
        ended = drain_in_time(address, grace_s)
    if not ended:
        fail(f"something is still on this node after {grace_s} s")
        raise typer.Exit(EXIT_FAILED)
    say("the node has left the cluster")


def drain_in_time(address: str, grace_s: int) -> bool:
    """Nobody is there to try again: as often as the time allows."""
    deadline = time.monotonic() + grace_s
    while True:
        try:
            return drain_this_node(address, max(int(deadline - time.monotonic()), 1), say)
        except ClusterError as error:
            if time.monotonic() + _POLL_S > deadline:
                raise
            fail(f"warning: {error}; trying again")
            time.sleep(_POLL_S)


def await_notice(provider: Provider, endpoint: str | None) -> None:
    """Return when the provider says so. A service that does not answer is told of, and asked again."""
    told = -_TELL_S
    while True:
        try:
            if is_preempted(provider, endpoint):
                say(f"{provider} takes this host away")
                return
        except OSError as error:
            if time.monotonic() - told >= _TELL_S:
                told = time.monotonic()
                fail(f"warning: no answer about spot notices: {error}; asking on")
        time.sleep(_POLL_S)
