"""Ray Train with DeepSpeed's own checkpoint, as their guides have it: what benchmarks.recovery kills a worker of.

Each finished step is a line `time step pids` in the file given; a checkpoint is taken every ten steps. All of Ray
Train's settings are its defaults, but for the one restart that it is allowed. Sources as in
benchmarks/step/plain_ray.py.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

CHECKPOINT_STEPS = 10


def train_func(config: dict[str, Any]) -> None:
    """Optimizer steps on random tokens; goes on from DeepSpeed's newest checkpoint where there is one."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch
    from torch.nn import functional as F

    from configs.sections.model_section import GptModel
    from trainer.models.gpt import Gpt

    model = Gpt(GptModel(**config["model"]), vocab=256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config["deepspeed"])
    checkpoints = Path(config["checkpoints"])
    if (checkpoints / "latest").exists():
        engine.load_checkpoint(str(checkpoints))
    pids: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(pids, os.getpid())
    for step in range(engine.global_steps + 1, config["steps"] + 1):
        for _ in range(config["deepspeed"]["gradient_accumulation_steps"]):
            rows = config["deepspeed"]["train_micro_batch_size_per_gpu"]
            tokens = torch.randint(256, (rows, model.config.context + 1))
            loss = F.cross_entropy(engine(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            engine.backward(loss)
            engine.step()
        loss.item()
        if step % CHECKPOINT_STEPS == 0:
            engine.save_checkpoint(str(checkpoints), tag=f"step-{step}")
        if torch.distributed.get_rank() == 0:
            with Path(config["out"]).open("a") as file:
                file.write(f"{time.time()} {step} {' '.join(map(str, pids))}\n")


def main(out: str, scratch: str, config_json: str, steps: str) -> None:
    """Train on two workers for `steps` steps; `config_json` has `model` and `deepspeed`."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", num_cpus=2, _temp_dir=f"{scratch}/ray")
    config = {
        "out": out,
        "checkpoints": f"{scratch}/checkpoints",
        "steps": int(steps),
        **json.loads(config_json),
    }
    trainer = TorchTrainer(
        train_func,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(
            name="plain", storage_path=f"{scratch}/results", failure_config=FailureConfig(max_failures=1)
        ),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
