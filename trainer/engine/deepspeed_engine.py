"""The engine that shards with DeepSpeed ZeRO. The only module that imports deepspeed."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from configs.errors import EngineError
from configs.recipe import Recipe
from data.batch import MicroBatch
from trainer.engine import zero_layout
from trainer.engine.collective_wait import CollectiveWait
from trainer.engine.deepspeed_config import build_optimizer, deepspeed_config
from trainer.engine.dropout_seed import seed_dropout
from trainer.engine.ema import EMA_KIND, EmaWeights
from trainer.engine.engine_protocol import Admit, Extent, Fragment, ReadState, Scalars, StepResult, add_sums, to_device
from trainer.engine.hardware import computes_bf16
from trainer.engine.optimizer_state import first_not_finite, group_scalars, restore_groups, restore_state
from trainer.models.norm import commit_statistics, pending_statistics, set_micro_batch_weight
from trainer.rank.context import Context
from trainer.tasks.task_protocol import EngineTask

__all__ = ["DeepSpeedEngine", "collective_backend", "select_accelerator", "use_device"]


_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def select_accelerator(gpus: int) -> None:
    """Fix DeepSpeed's accelerator before its first import; `gpus` is per worker."""
    if gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"


def use_device(gpus: int) -> None:
    """Make this worker's device the current one, before a process group is made on it; `gpus` is per worker."""
    if gpus:
        from deepspeed.accelerator import get_accelerator

        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))


def collective_backend(gpus: int) -> str:
    """The process-group backend of workers with `gpus` each."""
    return "nccl" if gpus else "gloo"


class DeepSpeedEngine:
    """ZeRO 0–3 in fp32, bf16 or fp16 (Rajbhandari et al. 2020), behind trainer.engine.engine_protocol.Engine."""

    def __init__(self, task: EngineTask, context: Context) -> None:
        recipe, ranks = context.recipe, context.ranks
        self.name = f"deepspeed-zero{recipe.zero.stage}-{recipe.precision}"
        self._task, self._recipe, self._ranks, self._activity = task, recipe, ranks, context.activity
        self._names = {id(p): name for name, p in task.module.named_parameters()}
        self._tested = False
        self._skipped_in_a_row = 0
        self._shapes = {n: tuple(p.shape) for n, p in task.module.named_parameters() if p.requires_grad}
        deepspeed = _import_deepspeed(recipe, context.warn)
        optimizer = build_optimizer(recipe.optimizer, task.parameter_groups())
        # dist_init_required: the process group exists, with our timeout and rendezvous; DeepSpeed would make another.
        with zero_layout.sharded_optimizer(deepspeed.DeepSpeedEngine):
            self._engine, *_ = deepspeed.initialize(
                model=task.module,
                optimizer=optimizer,
                config=deepspeed_config(recipe, ranks.world),
                dist_init_required=False,
            )
        self.device = torch.device(self._engine.device)
        if recipe.precision == "bf16" and not computes_bf16(self.device):
            context.warn("precision bf16 has no hardware support here: it is emulated, slower than fp32")
        self._collective_wait = CollectiveWait()
        if self.device.type == "cpu":  # elsewhere collectives wait on the device, unseen by the host's clock
            self._collective_wait.measure(deepspeed.comm.comm.cdb)
        self._optimizer = zero_layout.self_test(self._layout()).base_optimizer
        self._optimizer.state.clear()  # what the phantom step of half precision left behind
        self._ema = self._start_ema()

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        step: int,
        total_weight: float,
        lr: float,
        admit: Admit | None = None,
    ) -> StepResult:
        """(all ranks) DeepSpeed reduces inside `backward`: at stages 2 and 3 each time, else the last time.

        Raises EngineError for an update against `admit`.
        """
        self._collective_wait.start()
        engine, module = self._engine, self._task.module
        self.skip_update(lr)
        # DeepSpeed averages gradients over workers; the loss is a sum over them.
        scale = self._ranks.world / total_weight
        loss_sum = torch.zeros((), device=self.device)
        for index, batch in enumerate(micro_batches):
            seed_dropout(self._recipe.run.seed, step, batch.index, self.device)
            set_micro_batch_weight(module, float(batch.samples))
            # DeepSpeed would count micro-batches itself, and a step that was left out would shift its count.
            engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            self._activity("forward")
            loss = engine(**to_device(batch, self.device))["loss"]
            self._activity("backward")
            engine.backward(loss * scale, scale_wrt_gas=False)
            loss_sum += loss.detach()  # on the device: `float` would wait for each micro-batch
        return self._update(loss_sum, admit)

    def skip_update(self, lr: float) -> None:
        """No collective, no wait: only the rate that a checkpoint of this step stores is set."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr

    def _update(self, loss_sum: torch.Tensor, admit: Admit | None) -> StepResult:
        """One optimizer step with the gradients that are there, or none."""
        engine = self._engine
        self._activity("optimizer step")
        norm = self._clip_unsharded()
        # Between backward and update: `admit` adds up the losses of all ranks, and no weight has changed yet.
        refused = admit is not None and self._refuses(admit, loss_sum, norm)
        skipped_before = engine.skipped_steps
        scaled = self._step(refused)
        no_update = engine.skipped_steps > skipped_before
        if refused and not no_update:
            raise EngineError("DeepSpeed made an update that was refused: use the versions of constraints.txt")
        dropped = no_update and not scaled
        row = 0 if refused or not no_update else self._skipped_in_a_row + 1
        if dropped:
            engine.skipped_steps = skipped_before  # counts what the loss scaler skips
        else:
            self._skipped_in_a_row = row
        self._commit_statistics(no_update)
        # After the update, and only after one: the average counts updates, not steps.
        if self._ema is not None and not no_update:
            self._ema.update()
        norm = engine.get_global_grad_norm() if norm is None else norm
        own_s = self._collective_wait.own_s() if self.device.type == "cpu" else 0.0
        return StepResult(loss_sum, norm or 0.0, self._loss_scale(), no_update and not dropped, dropped, row, own_s)

    def _step(self, refused: bool) -> bool:
        """Whether a loss scaler dealt with an overflow, if there was one: else no scale makes an update of it."""
        engine = self._engine
        if refused:
            with zero_layout.no_update(engine.optimizer):
                engine.step()
            return False
        if self._recipe.precision != "fp16":
            engine.step()
            return False
        with zero_layout.loss_scale_kept(engine.optimizer) as overflows:
            engine.step()
        last_one = self._skipped_in_a_row + 1 >= self._recipe.loss_scale.max_skipped_steps
        return zero_layout.move_loss_scale(engine.optimizer, overflows, gives_up=last_one)

    def _refuses(self, admit: Admit, loss_sum: torch.Tensor, norm: torch.Tensor | None) -> bool:
        with self._collective_wait.waiting():
            admitted = admit(loss_sum)
        # Sharded or in half precision, DeepSpeed itself drops an update with a gradient that is no number.
        return not admitted or (norm is not None and not bool(torch.isfinite(norm)))

    def _clip_unsharded(self) -> torch.Tensor | None:
        """At stage 0 in fp32 the gradients lie in the model, and DeepSpeed does not give their norm."""
        if self._recipe.zero.stage or self._recipe.precision != "fp32":
            return None
        parameters = [p for p in self._task.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._recipe.optimizer.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._recipe.optimizer.grad_clip, norm)
        return norm

    def _commit_statistics(self, skipped: bool) -> None:
        pending = pending_statistics(self._task.module)
        if pending is not None and skipped:
            # What overflowed the gradients may be infinite in the statistics as well; zeros leave them as they are.
            commit_statistics(self._task.module, torch.zeros_like(pending))
        elif pending is not None:
            with self._collective_wait.waiting():  # past DeepSpeed's backend, so it is timed here
                total = self._ranks.sum_tensor(pending)
            commit_statistics(self._task.module, total)

    def _loss_scale(self) -> float:
        return float(self._engine.optimizer.cur_scale) if self._recipe.precision == "fp16" else 1.0

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> dict[str, float]:
        """Waits for the device once, at the end. At stage 3 the ranks need equally many micro-batches."""
        self._engine.eval()
        sums: dict[str, Any] = {}
        with torch.no_grad():
            for batch in micro_batches:
                self._activity("validating")
                add_sums(sums, self._engine(**to_device(batch, self.device)))
        self._engine.train()
        return {name: float(value) for name, value in sums.items()}

    def sample(self, length: int) -> str | None:
        """Through the engine on every rank, as at stage 3 each forward gathers the weights of all."""

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            self._activity("sampling")
            outputs: torch.Tensor = self._engine(inputs)
            return outputs

        self._engine.eval()
        with torch.no_grad():
            text = self._task.samples(forward, self.device, length)
        self._engine.train()
        return text

    def ema_weights(self) -> AbstractContextManager[None]:
        """Swaps the masters with their average and refreshes the live weights: collective at stages 1 to 3."""
        return nullcontext() if self._ema is None else self._ema.swapped_in()

    def _start_ema(self) -> EmaWeights | None:
        if self._recipe.ema is None:
            return None
        statistics = {name: b for name, b in self._persistent_buffers().items() if b.is_floating_point()}
        return EmaWeights(self._layout(), statistics, self._recipe.ema.decay)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """As the model was built: at stage 3 the live parameters have no elements."""
        return self._shapes

    def _layout(self) -> zero_layout.ZeroLayout:
        return zero_layout.find_layout(self._engine, self._names)

    def fragments(self) -> Iterator[Fragment]:
        """Views of the optimizer's own memory. Raises EngineError where the fp32 weights are not the live ones."""
        layout = self._layout()
        if not self._tested:  # it compares every weight, on the host
            zero_layout.self_test(layout)
            self._tested = True
        return self._fragments(layout)

    def not_finite(self) -> str | None:
        """In the order masters, averages and optimizer states, weights in half precision, buffers."""
        layout = self._layout()
        named = [(f"{f.kind} of {f.parameter}", f.tensor) for f in self._fragments(layout)]
        if self._recipe.precision != "fp32":  # a weight may be finite in fp32 and overflow in what the model uses
            named += [(f"{piece.parameter} in {self._recipe.precision}", piece.live()) for piece in layout.pieces]
        named += [(name, buffer) for name, buffer in self.buffers().items() if buffer.is_floating_point()]
        return first_not_finite(named)

    def _fragments(self, layout: zero_layout.ZeroLayout) -> Iterator[Fragment]:
        pieces = layout.pieces
        if layout.replicated:
            pieces = zero_layout.even_share(pieces, self._ranks.rank, self._ranks.world)
        for piece in pieces:
            yield Fragment(piece.parameter, "master", piece.start, piece.of(piece.flat))
            if self._ema is not None:
                yield Fragment(piece.parameter, EMA_KIND, piece.start, self._ema.of(piece))
            for kind, state in sorted(layout.base_optimizer.state.get(piece.flat, {}).items()):
                if isinstance(state, torch.Tensor) and state.numel() == piece.flat.numel() and kind != "step":
                    yield Fragment(piece.parameter, kind, piece.start, piece.of(state))

    def extents(self) -> Iterator[Extent]:
        """Of this rank's partition; at stage 0 of everything, as every rank holds it."""
        return ((piece.parameter, piece.start, piece.start + piece.count) for piece in self._layout().pieces)

    def buffers(self) -> dict[str, torch.Tensor]:
        """Live tensors by name: frozen parameters, persistent buffers, and `ema/…` for averaged statistics."""
        module = self._task.module
        frozen = {name: p.data for name, p in module.named_parameters() if not p.requires_grad}
        ema_buffers = {} if self._ema is None else self._ema.buffers()
        return {**frozen, **self._persistent_buffers(), **ema_buffers}

    def _persistent_buffers(self) -> dict[str, torch.Tensor]:
        module = self._task.module
        kept = module.state_dict(keep_vars=True)
        return {name: buffer for name, buffer in module.named_buffers() if name in kept}

    def scalars(self) -> Scalars:
        """Raises EngineError when parameters took different numbers of steps."""
        fields = {}
        if self._recipe.precision == "fp16":
            fields = {name: getattr(self._engine.optimizer.loss_scaler, name) for name in _SCALER_FIELDS}
        updates = 0 if self._ema is None else self._ema.updates
        skipped = self._engine.skipped_steps
        return Scalars(group_scalars(self._optimizer), fields, skipped, updates, self._skipped_in_a_row)

    def load(self, read: ReadState, buffers: dict[str, torch.Tensor], scalars: Scalars) -> None:
        """Raises CheckpointError for a state of another model or without an average, EngineError by the self-test."""
        layout = self._layout()
        restore_groups(layout.base_optimizer, scalars.groups)
        restore_state(layout, read, scalars.groups)
        layout.refresh()  # collective: the model's weights are gathered from the masters that every rank has restored
        zero_layout.self_test(layout)  # the live weights are the restored masters
        self._tested = True
        if self._ema is not None:
            self._ema.load(read, scalars.ema_updates)
        own = self.buffers()
        for name, stored in buffers.items():
            own[name].copy_(stored)
        for name, value in scalars.loss_scaler.items():
            setattr(self._engine.optimizer.loss_scaler, name, value)
        self._engine.skipped_steps = scalars.skipped_steps
        self._skipped_in_a_row = scalars.skipped_in_a_row

    def close(self) -> None:
        """Remove DeepSpeed's hooks and buffers; the process group stays."""
        self._engine.destroy()


def _import_deepspeed(recipe: Recipe, warn: Callable[[str], None]) -> Any:
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # The shared-memory op serves inference only, and takes a minute and a compiler to build. It alone is looked up, and
    # a first look at DeepSpeed's own list would run a compiler for every op, in every process.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    accelerator = get_accelerator()
    if recipe.precision == "bf16" and recipe.zero.stage == 0:
        warn("precision bf16 at zero.stage 0 adds up the gradients of micro-batches in bf16: stage 1 does so in fp32")
    if recipe.precision == "fp16" and not accelerator.is_fp16_supported():
        warn("precision fp16 has no hardware support here: it is computed, slowly, which is good for tests only")
        accelerator.is_fp16_supported = lambda: True
    return deepspeed
