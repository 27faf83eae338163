"""A Ray cluster of several nodes on this host that Stoker did not start: `python -m tests.support.ray_cluster`.

Each line "add" on standard input adds a node. Each answer is a line of JSON; the first tells the address.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from configs.checkout import CHECKOUT
from tests.support.patient_ray import wait_for_nodes_longer

FAST = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class RayCluster:
    """From the test's side. `environment` is what a user of the cluster needs."""

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ray_cluster"],
            cwd=CHECKOUT,
            env={**os.environ, **self.environment, **FAST, "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "cluster.log").open("wb"),
            text=True,
        )
        self.address = str(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input: it ends every node

    def add_node(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith('{"answer"'):  # Ray may print what it likes
            line = self._process.stdout.readline()
        return json.loads(line)["answer"]


def main() -> None:
    from ray.cluster_utils import Cluster

    wait_for_nodes_longer()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.head_node]
    _tell(cluster.address)
    for _ in sys.stdin:
        nodes.append(cluster.add_node(num_cpus=1))
        _tell(len(nodes) - 1)
    for node in [node for node in nodes if node in cluster.list_all_nodes()]:
        cluster.remove_node(node, allow_graceful=False)


def _tell(answer: Any) -> None:
    print(json.dumps({"answer": answer}), flush=True)


if __name__ == "__main__":
    main()
