"""What all loops of benchmarks/step/__main__.py have in common: model, batch, workers, optimizer."""

import json
from pathlib import Path

from configs.recipe import Recipe

WORKERS = 2
MICRO_BATCHES = 2  # per worker and step: gradient accumulation
MICRO_ROWS = 4
CONTEXT_TOKENS = 128
STEP_TOKENS = WORKERS * MICRO_BATCHES * MICRO_ROWS * CONTEXT_TOKENS
MODEL = {"kind": "gpt", "layers": 6, "heads": 8, "width": 256, "context": CONTEXT_TOKENS}
DEEPSPEED_CONFIG = {
    "train_micro_batch_size_per_gpu": MICRO_ROWS,
    "gradient_accumulation_steps": MICRO_BATCHES,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1},
}
# For the scripts without Stoker, which import nothing of the benchmarks.
PLAIN_RAY_CONFIG = json.dumps({"model": MODEL, "deepspeed": DEEPSPEED_CONFIG})
WARM_UP_STEPS = 4  # run before the clock starts; also Stoker's logging interval here, so its first line opens the clock


def recipe_of(folder: Path, name: str, steps: int) -> Recipe:
    """A GPT of 4.9 M parameters on the shards in `folder`/shards; the run folder is `folder`/runs/`name`."""
    return Recipe.model_validate(
        {
            "run": {"name": name, "dir": str(folder / "runs"), "steps": steps},
            "model": MODEL,
            "data": {"kind": "text", "train": {"shards": str(folder / "shards" / "train-*.tar")}},
            "batch": {"global": WORKERS * MICRO_BATCHES * MICRO_ROWS, "micro": MICRO_ROWS},
            "optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.1, "grad_clip": 1.0},
            "zero": {"stage": 1},
            "workers": {"count": WORKERS, "cpus": 1, "max_failures": 0},
            "monitor": {"every_steps": WARM_UP_STEPS},
        }
    )
