"""The `optimizer` section: one class per kind."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.sections.section import Fraction, Rate, Section

__all__ = ["Optimizer"]


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"]
    lr: Rate = 3.0e-4
    betas: list[Fraction] = Field([0.9, 0.95], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0.0)
    weight_decay: Rate = 0.1
    decay_embeddings: bool = Field(False, description="norms and biases are never decayed")
    grad_clip: Rate = Field(1.0, description="global L2 norm; 0: off")


class Adam(Section):
    """Adam (Kingma and Ba 2015); its weight decay is part of the gradient."""

    kind: Literal["adam"]
    lr: Rate = 1.0e-3
    betas: list[Fraction] = Field([0.9, 0.999], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0.0)
    weight_decay: Rate = 0.0
    decay_embeddings: bool = Field(False, description="norms and biases are never decayed")
    grad_clip: Rate = Field(1.0, description="global L2 norm; 0: off")


class RmsProp(Section):
    """RMSprop (Tieleman and Hinton 2012), as torch has it."""

    kind: Literal["rmsprop"]
    lr: Rate = 1.0e-3
    alpha: Fraction = Field(0.99, description="of the running mean of squared gradients")
    eps: float = Field(1e-8, gt=0.0)
    momentum: Fraction = 0.0
    weight_decay: Rate = 0.0
    decay_embeddings: bool = Field(False, description="norms and biases are never decayed")
    grad_clip: Rate = Field(0.0, description="global L2 norm; 0: off")


class Sgd(Section):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    lr: Rate = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Rate = 5e-5
    decay_embeddings: bool = Field(False, description="norms and biases are never decayed")
    grad_clip: Rate = Field(0.0, description="global L2 norm; 0: off")

    @model_validator(mode="after")
    def _nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


Optimizer = Annotated[AdamW | Adam | Sgd | RmsProp, Field(discriminator="kind")]
