"""Language modelling: each token predicts the next one."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.sections.model_section import GptModel
from configs.sections.optimizer_section import Optimizer
from data.source import IGNORED
from trainer.models.cost import gpt_flops_per_token
from trainer.models.gpt import Gpt
from trainer.tasks.task_protocol import ParameterGroup, mean_per_target, parameter_groups

TEMPERATURE = 0.8
TOP_K = 40


class LanguageModule(nn.Module):
    """The model with its loss; without targets the logits alone, so that samples too can go through the engine."""

    def __init__(self, model: Gpt) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor | None = None, documents_BT: Tensor | None = None
    ) -> dict[str, Tensor] | Tensor:
        """int64 tokens and targets -> sums "loss" (nats) and "weight" (targets); or logits_BTV without targets.

        With documents_BT no token sees another document of its row.
        """
        logits_BTV: Tensor = self.model(tokens_BT, documents_BT)
        if targets_BT is None:
            return logits_BTV
        targets = targets_BT.flatten()
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
        return {"loss": loss, "weight": (targets != IGNORED).sum().float()}


class LanguageTask:
    """Trains a Gpt; `vocab` counts the data's token ids, to which samples keep even where the model has more."""

    units: Literal["tokens", "images", "samples"] = "tokens"

    def __init__(
        self,
        config: GptModel,
        optimizer: Optimizer,
        seed: int,
        vocab: int,
        decode: Callable[[list[int]], str],
        prompt_tokens: list[int],
    ) -> None:
        model = Gpt(config, config.vocab or vocab)
        self.module: nn.Module = LanguageModule(model)
        self._context = config.context
        self._optimizer = optimizer
        self._seed = seed
        self._vocab = vocab
        self._decode = decode
        self._prompt_tokens = prompt_tokens
        self._flops_per_token = gpt_flops_per_token(model)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Matrices decay; norms and biases do not, embeddings only with optimizer.decay_embeddings."""
        return parameter_groups(self.module, self._optimizer)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss in nats per token, and its exponential."""
        loss = mean_per_target(sums, "loss")
        # A diverged run has a loss beyond what exp can hold.
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}

    def samples(self, forward: Callable[[Tensor], Tensor], device: torch.device, length: int) -> str | None:
        """`length` tokens after the prompt, the same for the same weights; None where they make no numbers."""
        # On the host, keyed by the seed: every rank draws the same tokens, and so calls `forward` equally often.
        generator = torch.Generator().manual_seed(self._seed)
        tokens = list(self._prompt_tokens)
        for _ in range(length):
            window_BT = torch.tensor([tokens[-self._context :]], device=device)
            logits_V = forward(window_BT)[0, -1, : self._vocab].float().cpu()
            if not bool(torch.isfinite(logits_V).all()):
                return None  # its loss is no number either, and is reported
            tokens.append(draw_token(logits_V, generator))
        return self._decode(tokens[len(self._prompt_tokens) :])

    def flops_per_target(self) -> float:
        """Of one token, forward and backward, with attention over a full context."""
        return self._flops_per_token


def draw_token(logits_V: Tensor, generator: torch.Generator) -> int:
    """One id at TEMPERATURE from the TOP_K likeliest (Fan et al. 2018)."""
    likeliest = logits_V.topk(min(TOP_K, len(logits_V)))
    chosen = torch.multinomial((likeliest.values / TEMPERATURE).softmax(dim=0), 1, generator=generator)
    return int(likeliest.indices[chosen])
