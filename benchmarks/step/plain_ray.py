"""Ray Train with DeepSpeed as their own guides have it: what command_start.py compares `stoker train` with.

Writes the time at the end of its first step to the file given. Sources: docs.ray.io/en/latest/train/deepspeed.html and
deepspeed.ai/getting-started.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def train_func(config: dict[str, Any]) -> None:
    """One optimizer step on random tokens, with the benchmark's model and batch."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch
    from torch.nn import functional as F

    from configs.sections.model_section import GptModel
    from trainer.models.gpt import Gpt

    model = Gpt(GptModel(**config["model"]), vocab=256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config["deepspeed"])
    for _ in range(config["deepspeed"]["gradient_accumulation_steps"]):
        tokens = torch.randint(256, (config["deepspeed"]["train_micro_batch_size_per_gpu"], model.config.context + 1))
        loss = F.cross_entropy(engine(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        engine.backward(loss)
        engine.step()
    loss.item()
    if torch.distributed.get_rank() == 0:
        Path(config["out"]).write_text(str(time.time()))


def main(out: str, scratch: str, config_json: str) -> None:
    """Train on two workers; `config_json` has `model` and `deepspeed`."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # A Ray of its own, whatever else runs on this host.
    ray.init(address="local", num_cpus=2, _temp_dir=f"{scratch}/ray")
    config = {"out": out, **json.loads(config_json)}
    trainer = TorchTrainer(
        train_func,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(name="plain", storage_path=f"{scratch}/results"),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
