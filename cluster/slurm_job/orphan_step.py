"""The orphan watch on one host of a job whose agents are in containers: `python -m cluster.slurm_job.orphan_step PLAN`.

Started by srun beside the agents, once on each host. It ends with its standard input.
"""

import os
import signal
import socket
import sys
import time

from cluster.hosts.network import reaches
from cluster.slurm_job.host_agent import (
    AGENT_POLL_S,
    FENCE_S,
    PROBE_TIMEOUT_S,
    SHIELDED,
    AgentPlan,
    leave_requested,
    orphan_watch,
)


def main(plan: AgentPlan) -> int:
    """Until standard input ends; 0."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    watch, heard = orphan_watch(plan, host), time.monotonic()
    while not leave_requested(host, AGENT_POLL_S):
        if reaches(plan.address, PROBE_TIMEOUT_S):
            heard = time.monotonic()
        elif time.monotonic() - heard > FENCE_S:
            watch.look()
    return 0


if __name__ == "__main__":
    sys.exit(main(AgentPlan.decode(sys.argv[1])))
