"""A cluster of Ray's own launcher (`ray up`) for a recipe; its schema is ray/autoscaler/ray-schema.json. Pure."""

import shlex
from typing import Any

from cluster.cloud.cluster_shape import RAY_PORT, NodeShape, cloud_of, node_shape, ray_environment, resource_name
from configs.errors import RecipeError
from configs.recipe import Recipe
from configs.sections.cloud_section import Cloud

__all__ = ["render_ray_cluster"]


Object = dict[str, Any]
_TOKEN = "~/.ray/auth_token"  # where `ray get-auth-token --generate` writes it, here and on the nodes


def render_ray_cluster(recipe: Recipe, recipe_yaml: str) -> Object:
    """The cluster's YAML as an object; `recipe_yaml` goes into the shared folder, as NAME.yaml.

    Raises RecipeError when `cloud.launcher` does not say enough.
    """
    cloud = cloud_of(recipe)
    _check(cloud)
    shape, launcher = node_shape(recipe.workers, cloud.workers_per_node), cloud.launcher
    return {
        "cluster_name": resource_name(recipe.run.name),
        "max_workers": shape.most,
        "idle_timeout_minutes": -(-cloud.idle_timeout_s // 60),
        "provider": launcher.provider,
        "auth": {"ssh_user": launcher.ssh_user},
        "docker": _docker(cloud, shape),
        "file_mounts": {_TOKEN: _TOKEN},
        "initialization_commands": launcher.setup,
        "head_setup_commands": [f"printf %s {shlex.quote(recipe_yaml)} > {shlex.quote(recipe_path(recipe, cloud))}"],
        "available_node_types": _node_types(cloud, shape),
        "head_node_type": "head",
        "head_start_ray_commands": _start(recipe, cloud, head=True),
        "worker_start_ray_commands": _start(recipe, cloud, head=False),
    }


def _node_types(cloud: Cloud, shape: NodeShape) -> Object:
    launcher = cloud.launcher
    return {
        # No CPUs for Ray: no worker is placed on the head, which has a smaller machine.
        "head": {"resources": {"CPU": 0}, "node_config": launcher.head_node, "min_workers": 0, "max_workers": 0},
        "workers": {
            "resources": {"CPU": shape.cpus} | ({"GPU": shape.gpus} if shape.gpus else {}),
            "node_config": launcher.worker_node,
            "min_workers": shape.least,
            "max_workers": shape.most,
        },
    }


def _docker(cloud: Cloud, shape: NodeShape) -> Object:
    shared = shlex.quote(cloud.shared)
    docker: Object = {
        "image": cloud.image,
        "container_name": "stoker",
        "pull_before_run": True,
        "run_options": ["--ulimit nofile=65536:65536", "--shm-size=8g", f"-v {shared}:{shared}"],
    }
    return docker | ({"worker_run_options": ["--gpus all"]} if shape.gpus else {})


def recipe_path(recipe: Recipe, cloud: Cloud) -> str:
    """Path of the resolved recipe on the cluster: in the shared folder, which every node has."""
    return f"{cloud.shared}/{resource_name(recipe.run.name)}.yaml"


def _check(cloud: Cloud) -> None:
    needed = {
        "provider": "as {type: aws, region: us-west-2}",
        "head_node": "as {InstanceType: m6i.large}",
        "worker_node": "as {InstanceType: g6.xlarge}",
    }
    for name, example in needed.items():
        if not getattr(cloud.launcher, name):
            raise RecipeError(f"cloud.launcher.{name} is missing: {example}")
    if "type" not in cloud.launcher.provider:
        raise RecipeError(f"cloud.launcher.provider has no type: {needed['provider']}")


def _start(recipe: Recipe, cloud: Cloud, *, head: bool) -> list[str]:
    settings = {"RAY_AUTH_MODE": "token", **ray_environment(recipe, cloud)}
    given = "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    if head:
        place = f"--head --port={RAY_PORT} --num-cpus=0 --autoscaling-config=~/ray_bootstrap_config.yaml"
    else:
        place = f"--address=$RAY_HEAD_IP:{RAY_PORT}"
    # `ray stop` of a container that has nothing but this node in it.
    commands = ["ray stop", f"{given}; ray start {place} --disable-usage-stats"]
    if cloud.spot and not head:
        # Beside Ray, and started again with it: the provider's notice comes two minutes before the end at the most.
        watch = f"stoker drain --watch {cloud.spot} --grace-s {cloud.grace_s}"
        commands.append(f"{given}; nohup {watch} >/tmp/stoker-drain.log 2>&1 &")
    return commands
