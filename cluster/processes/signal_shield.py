"""Runs a command that Slurm's signals to whole steps do not reach: `python -m cluster.processes.signal_shield COMMAND…`

Slurm signals every process of a job that is to end. The driver must hear of it once, from the supervisor (SIGUSR1), and
the processes that it started not at all.
"""

import os
import signal
import sys

SHIELDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

if __name__ == "__main__":
    # The mask outlives an exec, and every process started below inherits it; a handler would not outlive it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    os.execvp(sys.argv[1], sys.argv[1:])
