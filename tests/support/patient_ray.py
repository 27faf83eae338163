"""Ray's commands with minutes of patience for a node on a busy machine: `python -m tests.support.patient_ray start …`.

Half a minute is written into Ray's code, where no setting reaches it.
"""

import sys
import time
from typing import Any

WAIT_S = 300.0  # bounds a hang


def wait_for_nodes_longer() -> None:
    """In this process, a node that has been started is waited for until it is there, or for `WAIT_S`."""
    from ray._private import services

    get_node, wait_for_node = services.get_node, services.wait_for_node

    def get_node_in_time(*arguments: Any) -> Any:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it has not registered yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = get_node_in_time
    services.wait_for_node = lambda gcs, socket, _timeout=None: wait_for_node(gcs, socket, WAIT_S)


if __name__ == "__main__":
    from ray.scripts.scripts import main

    wait_for_nodes_longer()
    sys.exit(main())
