"""Ray Train's TorchTrainer without what one host does not need. The only module that imports ray.train."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray import PlacementGroupID
from ray._private.worker import global_worker
from ray.exceptions import RayActorError
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch import config as ray_torch
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from configs.errors import StokerError
from configs.recipe import Workers

COLLECTIVE_TIMEOUT_S = 600
LOOPBACK = "127.0.0.1"


class LocalTrainer(TorchTrainer):  # type: ignore[misc]  # ray is not typed
    """Starts in two thirds of the time: no autoscaler to ask, no leftovers to clean that LocalRay does not end anyway.

    Each of the two is a process that imports Ray (2–3 s of a cpu), and the first is waited for.
    """

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        parts["scaling_policy"] = _NoAutoscaler(self.scaling_config)
        parts["failure_policy"] = _NoRetryOfOurErrors(self.run_config.failure_config)
        parts["callbacks"] = [c for c in parts["callbacks"] if not isinstance(c, PlacementGroupCleanerCallback)]
        return super()._initialize_and_run_controller(**parts)


class _NoAutoscaler(FixedScalingPolicy):  # type: ignore[misc]
    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class _NoRetryOfOurErrors(DefaultFailurePolicy):  # type: ignore[misc]
    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if any(isinstance(error, StokerError) for error in worker_errors(training_failed_error).values()):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _LoopbackConfig(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> "type[_LoopbackBackend]":
        return _LoopbackBackend


class _LoopbackBackend(ray_torch._TorchBackend):  # type: ignore[misc]
    """Ray's torch backend, but the process group meets at a socket that other hosts cannot reach.

    torch's own rendezvous listens on every address and asks for no password.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(ray_torch._set_torch_distributed_env_vars)
        port = worker_group.execute_single(0, _listen)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config, port, rank, len(worker_group))
                for rank in range(len(worker_group))
            ]
        )


_listeners: list[socket.socket] = []


def _listen() -> int:
    _listeners.append(socket.create_server((LOOPBACK, 0)))
    port: int = _listeners[-1].getsockname()[1]
    return port


def _join(config: TorchConfig, port: int, rank: int, world: int) -> None:
    os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    timeout = timedelta(seconds=config.timeout_s)
    listener = {"master_listen_fd": _listeners.pop().detach()} if rank == 0 else {}
    store = ray_torch.dist.TCPStore(LOOPBACK, port, world, is_master=rank == 0, timeout=timeout, **listener)
    ray_torch.dist.init_process_group(config.backend, store=store, rank=rank, world_size=world, timeout=timeout)


def make_trainer(
    worker: Callable[[dict[str, Any]], None], config: dict[str, Any], name: str, workers: Workers, backend: str
) -> LocalTrainer:
    """A trainer for the Ray that this process is connected to; its own files go to Ray's session folder."""
    return LocalTrainer(
        worker,
        train_loop_config=config,
        torch_config=_LoopbackConfig(backend=backend, timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, "GPU": workers.gpus},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(Path(global_worker.node.get_session_dir_path()) / "train"),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(workers.cpus)}},
            # Its own retry of a failed start would wait in vain: see `release_workers`.
            failure_config=FailureConfig(max_failures=workers.max_failures, controller_failure_limit=0),
        ),
    )


def worker_errors(error: BaseException) -> dict[int, BaseException]:
    """What each failed rank raised, for an error of `LocalTrainer.fit`; empty when no worker is to blame."""
    return dict(error.worker_failures) if isinstance(error, WorkerGroupError) else {}


def died_at_start(error: BaseException) -> bool:
    """Whether a worker died before all of them ran, which Ray Train does not count among the workers' failures."""
    lost = RayActorError, WorkerGroupStartupFailedError
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, lost)


def release_workers() -> None:
    """Free what an ended `fit` left reserved: after a failed start, Ray Train 2.60 keeps the dead group's cpus."""
    for identity, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(identity)))


def is_death(error: BaseException) -> bool:
    """Whether the worker's process is gone, rather than its function failed."""
    return isinstance(error, WorkerHealthCheckFailedError)
