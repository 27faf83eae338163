"""Ray Train with forked workers: its controller, group and restarts, without what Stoker does not use.

The only module that imports ray.train's trainer. Parts of Ray Train 2.60 that are not public are used here and in
ray_policies; the version is pinned.
"""

import uuid
from pathlib import Path
from typing import Any

import ray
from ray.train import BackendConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import state as group_state
from ray.train.v2._internal.execution.worker_group import worker_group as group_module
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.ray_cluster.key_value import RunStore
from cluster.workers.ray_policies import AsManyAsFit, CountWithoutProgress
from cluster.workers.worker_shell import ShellOrder, adopt_group, run_shell
from configs.recipe import Workers

_NOT_NEEDED = (PlacementGroupCleanerCallback, DatasetsCallback)  # each starts a process; we have no Ray datasets


class _ForkingConfig(BackendConfig):  # type: ignore[misc]
    def __init__(self, run: str) -> None:
        self.run = run

    @property
    def backend_cls(self) -> "type[_ForkingBackend]":
        return _ForkingBackend


class _ForkingBackend(Backend):  # type: ignore[misc]
    """Names the group, so that its workers find each other; the process group is the forked processes' own."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: _ForkingConfig) -> None:
        name = uuid.uuid4().hex[:12]
        store = RunStore(backend_config.run).group(name)
        store.put("world", len(worker_group))
        store.put("nodes", sorted({worker.metadata.node_id for worker in worker_group.get_workers()}))
        worker_group.execute(adopt_group, name)
        RunStore(backend_config.run).put("room", None)  # a controller that died may have been waiting
        RunStore(backend_config.run).put("group", name)


class _Nobody:
    """In the place of the actor that carries `ray.train.report`, which Stoker does not call: one process less."""

    def options(self, **_: Any) -> "_Nobody":
        return self

    def remote(self, **_: Any) -> "_Nobody":
        return self


class LeanTrainController(TrainController):  # type: ignore[misc]
    """Ray Train's controller without its actor for barriers between workers, which costs seconds at each start."""

    def __init__(self, **parts: Any) -> None:
        group_module.SynchronizationActor = _Nobody()
        group_state._shutdown_sync_actor = lambda actor: None
        super().__init__(**parts)


class ForkingTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Starts faster than Ray Train's own: each thing left out is a process that imports Ray (2–3 s of a cpu)."""

    def __init__(self, policies: dict[str, Any], *, shared: bool, **options: Any) -> None:
        super().__init__(run_shell, **options)
        self._policies, self._shared = policies, shared

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        parts |= self._policies
        parts["callbacks"] = [c for c in parts["callbacks"] if not isinstance(c, _NOT_NEEDED)]
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        # A Ray of our own has the settings in its environment; processes that ask for none start sooner.
        settings = {"runtime_env": {"env_vars": get_env_vars_to_propagate()}} if self._shared else {}
        controller = ray.remote(num_cpus=0, label_selector=here, **settings)(LeanTrainController).remote(**parts)
        try:
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())
        finally:
            ray.kill(controller)  # and with it the workers' reserved resources, whatever state it was in


def make_trainer(order: ShellOrder, *, name: str, workers: Workers, storage: Path, shared: bool) -> ForkingTrainer:
    """A trainer for the Ray that this process is connected to. `shared`: others may use that Ray, or an autoscaler."""
    scaling = ScalingConfig(
        num_workers=workers.most,
        use_gpu=workers.gpus > 0,
        resources_per_worker={"CPU": workers.cpus, "GPU": workers.gpus},
    )
    failures = FailureConfig(max_failures=-1, controller_failure_limit=0)
    return ForkingTrainer(
        {
            "scaling_policy": AsManyAsFit(scaling, order.run, workers.least, workers.most, ask_autoscaler=shared),
            "failure_policy": CountWithoutProgress(failures, order, workers.max_failures),
        },
        shared=shared,
        train_loop_config=order.encode(),
        backend_config=_ForkingConfig(order.run),
        scaling_config=scaling,
        run_config=RunConfig(name=name, storage_path=str(storage), failure_config=failures),
    )
