"""Many runs of one recipe, each killed somewhere and resumed, beside busy loops: `make same-bits RUNS=50`.

Every run must have the bits of the first one, which nobody disturbed: each logged figure, each stored state. Exit code
1, with the first step that differs, when one has not.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.recipe import Recipe
from tests.support.processes import run_in_processes
from tests.support.training.commands import attempts, train
from tests.support.training.runs import (
    RESNET,
    digests,
    history,
    recipe_of,
    run_job,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)

# Odd sizes, so that kernels have ends that are no whole vector; matrices above 100,000 elements, which ZeRO-3 gathers
# anew for each use, and smaller ones, which it keeps.
GPT = {"kind": "gpt", "layers": 2, "heads": 3, "width": 258, "context": 33, "dropout": 0.1}
STEPS = 24


@dataclass(frozen=True)
class Setting:
    """What is run `runs` times at each stage; `through_ray`: as `stoker train`, else in bare processes."""

    folder: Path
    model: dict[str, Any]
    runs: int
    through_ray: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50, help="at each stage")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--busy", type=int, default=2, help="loops that keep a processor busy meanwhile")
    parser.add_argument("--model", choices=["gpt", "resnet"], default="gpt")
    parser.add_argument("--through-ray", action="store_true", help="as `stoker train`, not in bare processes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-bits-") as name, _busy(given.busy):
        folder = Path(name)
        write_text_shards(folder) if given.model == "gpt" else write_image_shards(folder)
        model = GPT if given.model == "gpt" else RESNET
        setting = Setting(folder, model, given.runs, given.through_ray)
        return max(_compare(setting, stage) for stage in given.stages)


@contextmanager
def _busy(count: int) -> Iterator[None]:
    loops = [multiprocessing.get_context("spawn").Process(target=_turn, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def _turn() -> None:
    while True:
        pass


def _compare(setting: Setting, stage: int) -> int:
    calm = _recipe(setting, "calm", stage)
    train_in_processes(setting.folder / f"store-{stage}", 2, [(calm, None)])
    different = 0
    begun = time.monotonic()
    for number in range(1, setting.runs + 1):
        rough = _recipe(setting, f"run-{number}", stage)
        rng = random.Random(f"{stage} {number}")
        fault = f"kill:rank={rng.randrange(2)}@step={rng.randrange(2, STEPS)},phase={rng.choice(_PHASES)}"
        _run(setting, rough, fault)
        found = _difference(rough, calm)
        different += found is not None
        state = "equal" if found is None else f"DIFFERENT: {found}"
        print(
            f"stage {stage}, run {number} of {setting.runs}, {fault}, {len(attempts(rough))} attempts: {state}",
            flush=True,
        )
    print(f"stage {stage}: {different} of {setting.runs} runs differ; {time.monotonic() - begun:.0f} s", flush=True)
    return int(different > 0)


_PHASES = ("forward", "backward", "optimizer step")


def _recipe(setting: Setting, name: str, stage: int) -> Recipe:
    return recipe_of(
        setting.folder,
        setting.model,
        name,
        run={"name": f"{name}-{stage}", "dir": str(setting.folder / "runs"), "steps": STEPS},
        zero={"stage": stage},
        checkpoint={"every_steps": 3, "keep_last": 1},
        workers={"count": 2, "hang_timeout_s": 120.0},
    )


def _run(setting: Setting, recipe: Recipe, fault: str) -> None:
    """To the end, through a SIGKILL."""
    if setting.through_ray:
        code, output = train(recipe, setting.folder, "--chaos", fault)
        assert code == 0, output
    else:
        store = setting.folder / f"store-{recipe.run.name}"
        try:
            run_in_processes(run_job, 2, store, recipe, None, [fault])
        except AssertionError:
            run_in_processes(run_job, 2, store.with_suffix(".again"), recipe)
    assert len(attempts(recipe)) == 2, f"{fault} did not strike"


def _difference(run: Recipe, other: Recipe) -> str | None:
    for mine, theirs in zip(history(run), history(other), strict=True):
        if mine != theirs:
            keys = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
            return f"step {mine['step']}: " + ", ".join(f"{k} {mine.get(k)!r} != {theirs.get(k)!r}" for k in keys)
    states, expected = digests(run, STEPS), digests(other, STEPS)
    changed = [name for name in expected if states.get(name) != expected[name]]
    return f"states {changed}" if changed else None


if __name__ == "__main__":
    sys.exit(main())
