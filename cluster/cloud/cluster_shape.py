"""What a cloud cluster for a recipe consists of: nodes, what each has, names, commands. Pure."""

import hashlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cluster.hosts.resources import cpus_of_workers
from configs.errors import RecipeError, ResourceError
from configs.recipe import Recipe, Workers
from configs.sections.cloud_section import Cloud, quantity_bytes

__all__ = ["check_memory", "cloud_of"]


GIB = 1 << 30
RAY_PORT = 6379
_PATH_KEYS = (".shards", ".tokenizer", ".init_from")
_MAX_NAME = 40  # KubeRay adds suffixes of its own, and Kubernetes takes 63 characters


@dataclass(frozen=True)
class NodeShape:
    """Nodes with workers: how many at least and at most, and the cpus and gpus of each."""

    least: int
    most: int
    cpus: int
    gpus: int


def node_shape(workers: Workers, workers_per_node: int) -> NodeShape:
    """Nodes for `workers`, whole ones: the last may have room for more workers than it gets."""
    each = min(workers_per_node, workers.most)
    cpus, gpus = cpus_of_workers(each, workers.cpus), each * workers.gpus
    return NodeShape(-(-workers.least // each), -(-workers.most // each), cpus, gpus)


def check_memory(recipe: Recipe, cloud: Cloud, worker_bytes: int) -> None:
    """Raises ResourceError when the state of a node's workers alone is more than its memory."""
    each = min(cloud.workers_per_node, recipe.workers.most)
    given = quantity_bytes(cloud.node_memory)
    if each * worker_bytes > given:
        raise ResourceError(
            f"{each} workers on a node need at least {each * worker_bytes / GIB:.2f} GiB, cloud.node_memory is "
            f"{cloud.node_memory}: raise it, or lower cloud.workers_per_node"
        )


def cloud_of(recipe: Recipe) -> Cloud:
    """Raises RecipeError when the recipe has none, or its run folder would end with a node."""
    if recipe.cloud is None:
        raise RecipeError("the recipe has no cloud: section: add it, with cloud.image at least (docs/cloud.md)")
    shared = recipe.cloud.shared
    _check_shared("run.dir", recipe.run.dir, shared)
    if recipe.checkpoint.dir is not None and "://" not in recipe.checkpoint.dir:
        _check_shared("checkpoint.dir", recipe.checkpoint.dir, shared)
    for key, path in _local_paths(recipe):
        if not PurePosixPath(path).is_absolute():
            raise RecipeError(
                f"{key} is {path}, a path relative to this folder, which the cluster does not have: give a URL, or the "
                f"path in {shared} or in the image"
            )
    return recipe.cloud


def _check_shared(key: str, path: str, shared: str) -> None:
    folder = PurePosixPath(path)
    if ".." in folder.parts or not folder.is_relative_to(shared):
        raise RecipeError(
            f"{key} is {path}, not below cloud.shared {shared}: what is written there would end with its node; "
            f"set {key}={shared}/runs"
        )


def _local_paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Keys and values of what the workers read, without URLs."""
    yield from _paths_below("data", recipe.data.model_dump(by_alias=True))
    yield from _paths_below("model", recipe.model.model_dump(by_alias=True))


def _paths_below(key: str, value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for name, inner in value.items():
                yield from _paths_below(f"{key}.{name}", inner)
        case list():
            for inner in value:
                yield from _paths_below(key, inner)
        case str() if key.endswith(_PATH_KEYS) and "://" not in value and value != "bytes":
            yield key, value


def resource_name(run: str) -> str:
    """A name that Kubernetes and clouds take (RFC 1123), another one for every run."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if name == run and name[0].isalpha() and len(name) <= _MAX_NAME:
        return name
    # Two runs that differ in what a name may not hold would else get the same one, and each other's cluster.
    return f"run-{name[: _MAX_NAME - 13].strip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def train_command(recipe_path: str) -> str:
    """The driver's command line, for a shell on a node of the cluster."""
    return shlex.join(["stoker", "train", recipe_path, "--address", "auto"])


def ray_environment(recipe: Recipe, cloud: Cloud) -> dict[str, str]:
    """Environment of every Ray process: lost nodes noticed within seconds, a stopped job given time to save."""
    health = {"initial_delay_ms": 5000, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}
    environment = {f"RAY_health_check_{name}": str(value) for name, value in health.items()}
    environment |= {"RAY_JOB_STOP_WAIT_TIME_S": str(cloud.grace_s), "RAY_USAGE_STATS_ENABLED": "0"}
    return environment if recipe.workers.gpus else environment | {"DS_ACCELERATOR": "cpu"}
