"""The `cloud:` section: what `stoker render` writes, for Kubernetes and for Ray's cluster launcher."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from configs.sections.section import NonNegative, Positive, Section

__all__ = ["Cloud", "quantity_bytes"]


Text = Annotated[str, Field(min_length=1)]
_QUANTITY = re.compile(r"[1-9]\d*(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?")
_UNITS = {
    "": 1,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}


class Kubernetes(Section):
    """A KubeRay RayJob."""

    namespace: Text | None = Field(None, description="default: that of kubectl")
    claim: Text | None = Field(None, description="PersistentVolumeClaim (ReadWriteMany) that is seen at `cloud.shared`")
    secrets: list[Text] = Field([], description="Secrets whose keys become environment variables: storage credentials")
    service_account: Text | None = None
    node_selector: dict[str, str] = Field({}, description="of the workers' pods")
    tolerations: list[dict[str, Any]] = Field([], description="of the workers' pods, as of spot nodes")
    max_retries: NonNegative = Field(3, description="new clusters after the head was lost; each resumes the run")


class Launcher(Section):
    """A cluster of `ray up`."""

    provider: dict[str, Any] = Field({}, description="as Ray has it: type, region, …")
    ssh_user: Text = "ubuntu"
    head_node: dict[str, Any] = Field({}, description="the provider's node_config, as InstanceType")
    worker_node: dict[str, Any] = Field({}, description="the provider's node_config")
    setup: list[Text] = Field([], description="shell lines on each host before its container: mount `cloud.shared`")


class Cloud(Section):
    """What [`stoker render`](cloud.md) needs beside the recipe."""

    image: Text = Field(description="container image with Stoker installed, `ray[default]` included")
    shared: str = Field("/shared", pattern=r"^/.", description="a folder that all nodes share; `run.dir` lies in it")
    workers_per_node: Positive = 1
    node_memory: str = Field("16Gi", description="of a node with workers, as Kubernetes writes it")
    head_cpus: Positive = 2
    head_memory: str = "8Gi"
    grace_s: Positive = Field(120, description="for the checkpoint, from the notice that a node goes to its end")
    idle_timeout_s: Positive = Field(300, description="with a range of workers: nodes without any are given back")
    spot: Literal["aws", "gcp", "azure"] | None = Field(
        None, description="watch for this provider's notice that a spot host of `ray up` is taken away"
    )
    kubernetes: Kubernetes = Kubernetes()
    launcher: Launcher = Launcher()

    @model_validator(mode="after")
    def _quantities(self) -> Self:
        for name in ("node_memory", "head_memory"):
            if not _QUANTITY.fullmatch(getattr(self, name)):
                raise ValueError(f"cloud.{name} is {getattr(self, name)!r}: expected a quantity such as 16Gi")
        return self


def quantity_bytes(text: str) -> int:
    """Bytes of a Kubernetes quantity that `Cloud` has let pass."""
    number = text.rstrip("KMGTik")
    return int(float(number) * _UNITS[text[len(number) :]])
