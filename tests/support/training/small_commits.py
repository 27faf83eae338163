"""One small parameter saved and read by the parts of a commit alone: no engine, no process group."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs.recipe import Checkpoint
from trainer.checkpoint.commit import Commit, RankShare
from trainer.checkpoint.folder_store import FolderStore
from trainer.checkpoint.manifest import Manifest, StoredFragment
from trainer.checkpoint.rank_receipts import Receipts, clean_receipts
from trainer.checkpoint.reader import CheckpointReader, verify
from trainer.checkpoint.retention import steps_to_remove
from trainer.checkpoint.safetensors_file import TensorInfo, plan_tensor_file
from trainer.checkpoint.store_protocol import SaveId
from trainer.engine.engine_protocol import Extent
from trainer.rank.ranks import Ranks

ALONE = Ranks(0, 1)

ELEMENTS = 3000
OLD = 5
NEW = 10
KEPT = Checkpoint(keep_last=1)


def header(step: int, attempt: int = 1) -> Manifest:
    shapes = {"weight": [ELEMENTS]}
    return Manifest(step, 8 * step, 128 * step, attempt, 1, "test", 1, {}, "", "", {}, shapes)


def share_of_rank(step: int, rank: int, ranks: int) -> RankShare:
    """`rank`'s share of a parameter whose every element is the step."""
    first, last = ELEMENTS * rank // ranks, ELEMENTS * (rank + 1) // ranks
    values = np.full(last - first, step, np.float32)
    fragment = StoredFragment("weight", "master", first, last - first, f"rank-{rank}.safetensors", 0)
    plan = plan_tensor_file({fragment.key: TensorInfo("F32", values.shape)})
    image = memoryview(bytearray(plan.header + values.tobytes()))
    placed = replace(fragment, offset=plan.offsets[fragment.key])
    return RankShare(header(step), fragment.file, image, [placed], {})


def commit(root: Path, step: int, rank: int = 0, ranks: int = 1, attempt: int = 1) -> None:
    """All acts of one rank in one save, as CheckpointWriter does them."""
    store = FolderStore(root)
    save = SaveId(attempt, 1, step)
    acts = Commit(store, Receipts(root, save), save, rank=rank, ranks=ranks)
    stored, file = acts.store_share(share_of_rank(step, rank, ranks))
    if rank == 0:
        acts.publish(header(step))
    acts.read_back(stored, file)
    if rank == 0:
        acts.await_read_back()
        for old in steps_to_remove(store.steps(), {}, KEPT):
            store.remove(old)


def check_whole(root: Path) -> int:
    """What a reader finds is whole and of one step; then what the crash left is cleaned away. Returns the step."""
    store = FolderStore(root)
    steps = store.steps()
    assert steps, "no checkpoint at all"
    for step in steps:
        with CheckpointReader(store.at(step), verify(store.at(step))) as reader:
            read = reader.read("master", "weight")
            assert read is not None
            assert read(0, ELEMENTS).unique().tolist() == [step]
    store.clean()
    clean_receipts(root)
    assert sorted(path.name for path in root.iterdir()) == [f"step-{step:08d}" for step in steps]
    return steps[-1]


def start_over(root: Path) -> None:
    """Back to the old checkpoint alone."""
    store = FolderStore(root)
    for step in store.steps():
        if step != OLD:
            store.remove(step)
    if OLD not in store.steps():
        commit(root, OLD)


def all_extents(manifest: Manifest) -> list[Extent]:
    return [(name, 0, torch.Size(shape).numel()) for name, shape in manifest.parameters.items()]
