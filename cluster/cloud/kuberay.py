"""A KubeRay RayJob for a recipe (API ray.io/v1, KubeRay 1.5.1 or newer: docs.ray.io, KubeRay CRD reference). Pure.

Two objects: a ConfigMap with the recipe, and the RayJob, whose head runs the driver and whose workers' pods, when
they are taken away, first have their Ray node drained.
"""

from typing import Any

from cluster.cloud.cluster_shape import NodeShape, cloud_of, node_shape, ray_environment, resource_name, train_command
from configs.errors import RecipeError
from configs.recipe import Recipe
from configs.sections.cloud_section import Cloud

__all__ = ["render_kuberay"]


Object = dict[str, Any]
_RECIPE_FOLDER = "/etc/stoker"
_SPARE_S = 30  # of a pod's grace, after the drain, for Ray to end


def render_kuberay(recipe: Recipe, recipe_text: str, ray_version: str) -> list[Object]:
    """The objects to apply. Raises RecipeError when `cloud` does not say enough, or contradicts the recipe."""
    cloud = cloud_of(recipe)
    if cloud.kubernetes.claim is None:
        raise RecipeError(
            "cloud.kubernetes.claim is missing: name a PersistentVolumeClaim that all pods may mount (ReadWriteMany); "
            f"it is seen at {cloud.shared}, and the run folder in it outlives the pods"
        )
    shape = node_shape(recipe.workers, cloud.workers_per_node)
    name, metadata = resource_name(recipe.run.name), _metadata(recipe, cloud)
    job: Object = {
        "entrypoint": train_command(f"{_RECIPE_FOLDER}/recipe.yaml"),
        "backoffLimit": cloud.kubernetes.max_retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 60,
        "rayClusterSpec": _cluster(recipe, cloud, shape, ray_version),
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"recipe.yaml": recipe_text}}
    return [config, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {**metadata, "name": name}, "spec": job}]


def _metadata(recipe: Recipe, cloud: Cloud) -> Object:
    metadata: Object = {"name": resource_name(recipe.run.name), "labels": {"app.kubernetes.io/name": "stoker"}}
    return metadata | ({"namespace": cloud.kubernetes.namespace} if cloud.kubernetes.namespace else {})


def _cluster(recipe: Recipe, cloud: Cloud, shape: NodeShape, ray_version: str) -> Object:
    elastic = shape.least < shape.most
    group: Object = {
        "groupName": "workers",
        "replicas": shape.least if elastic else shape.most,
        "minReplicas": shape.least,
        "maxReplicas": shape.most,
        "rayStartParams": {},
        "template": _worker_pod(recipe, cloud, shape),
    }
    cluster: Object = {
        "rayVersion": ray_version,
        "authOptions": {"mode": "token"},
        # No cpus for Ray on the head: it has the driver, not workers.
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _head_pod(recipe, cloud)},
        "workerGroupSpecs": [group],
    }
    if elastic:
        cluster |= {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"idleTimeoutSeconds": cloud.idle_timeout_s},
        }
    return cluster


def _head_pod(recipe: Recipe, cloud: Cloud) -> Object:
    resources: Object = {"cpu": str(cloud.head_cpus), "memory": cloud.head_memory}
    container = _container("ray-head", recipe, cloud, resources)
    container["volumeMounts"].append({"name": "recipe", "mountPath": _RECIPE_FOLDER, "readOnly": True})
    spec = _pod(cloud, container)
    spec["volumes"].append({"name": "recipe", "configMap": {"name": resource_name(recipe.run.name)}})
    return {"spec": spec}


def _worker_pod(recipe: Recipe, cloud: Cloud, shape: NodeShape) -> Object:
    resources: Object = {"cpu": str(shape.cpus), "memory": cloud.node_memory}
    resources |= {"nvidia.com/gpu": str(shape.gpus)} if shape.gpus else {}
    container = _container("ray-worker", recipe, cloud, resources)
    # Kubernetes waits for preStop before it sends SIGTERM: the run leaves while its Ray node still works.
    drain = ["stoker", "drain", "--grace-s", str(cloud.grace_s)]
    container["lifecycle"] = {"preStop": {"exec": {"command": drain}}}
    spec = _pod(cloud, container)
    spec["terminationGracePeriodSeconds"] = cloud.grace_s + _SPARE_S
    kubernetes = cloud.kubernetes
    given = {"nodeSelector": kubernetes.node_selector, "tolerations": kubernetes.tolerations}
    return {"spec": {**spec, **{key: value for key, value in given.items() if value}}}


def _pod(cloud: Cloud, container: Object) -> Object:
    claim = {"name": "shared", "persistentVolumeClaim": {"claimName": cloud.kubernetes.claim}}
    # A pod has 64 MB of /dev/shm by default; Ray and NCCL need more.
    spec: Object = {"containers": [container], "volumes": [claim, {"name": "shm", "emptyDir": {"medium": "Memory"}}]}
    account = cloud.kubernetes.service_account
    return spec | ({"serviceAccountName": account} if account else {})


def _container(name: str, recipe: Recipe, cloud: Cloud, resources: Object) -> Object:
    mounts = [{"name": "shared", "mountPath": cloud.shared}, {"name": "shm", "mountPath": "/dev/shm"}]
    container: Object = {
        "name": name,
        "image": cloud.image,
        "resources": {"requests": resources, "limits": dict(resources)},
        "env": [{"name": key, "value": value} for key, value in ray_environment(recipe, cloud).items()],
        "volumeMounts": mounts,
    }
    secrets = [{"secretRef": {"name": secret}} for secret in cloud.kubernetes.secrets]
    return container | ({"envFrom": secrets} if secrets else {})
