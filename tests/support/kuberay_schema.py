"""The part of KubeRay's API that Stoker writes, as JSON Schema without any other field.

From the CRD reference (docs.ray.io, "KubeRay CRD API reference", ray.io/v1, KubeRay 1.6). Pods are Kubernetes' own.
"""

from typing import Any

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_POD: Schema = {"type": "object"}

_HEAD = _object(["template", "rayStartParams"], serviceType=_TEXT, rayStartParams=_TEXTS, template=_POD)
_GROUP = _object(
    ["groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"],
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    rayStartParams=_TEXTS,
    template=_POD,
)
_CLUSTER = _object(
    ["headGroupSpec"],
    rayVersion=_TEXT,
    authOptions=_object([], mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_object(
        [], idleTimeoutSeconds=_COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _GROUP},
)
_JOB = _object(
    [],
    entrypoint=_TEXT,
    backoffLimit=_COUNT,
    activeDeadlineSeconds=_COUNT,
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    rayClusterSpec=_CLUSTER,
)
RAY_JOB = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object(["name"], name={"type": "string", "maxLength": 47}, namespace=_TEXT, labels=_TEXTS),
    spec=_JOB,
)


def schema_of_crd(crd: dict[str, Any], version: str) -> Schema:
    """The schema of one version of a CustomResourceDefinition, in which a field that it does not know is an error.

    An API server drops such fields in silence, but where `x-kubernetes-preserve-unknown-fields` keeps them.
    """
    (served,) = (found for found in crd["spec"]["versions"] if found["name"] == version)
    return _strict(served["schema"]["openAPIV3Schema"])


def _strict(schema: Schema) -> Schema:
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _strict(found) for name, found in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            strict[key] = _strict(schema[key])
    return strict
