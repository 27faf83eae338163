"""The `model` section: one class per kind of model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.sections.section import Dimension, Fraction, Positive, Section, divisors

__all__ = ["GptModel", "Model", "ResnetModel"]


InitFrom = Annotated[
    str | None,
    Field(
        min_length=1,
        description="initial weights: a Hugging Face folder (config.json, safetensors) or one .safetensors file; "
        "read at the start of the run only",
    ),
]


class GptModel(Section):
    """Decoder-only Transformer, pre-norm (trainer/models/gpt.py)."""

    kind: Literal["gpt"]
    layers: Positive = Field(4, le=10_000)
    heads: Dimension = 4
    kv_heads: Dimension | None = Field(None, description="grouped-query attention; default: `heads`")
    width: Dimension = Field(128, description="model (embedding) dimension")
    mlp_width: Dimension | None = Field(
        None, description="default: 4·width (gelu), or 8/3·width up to a multiple of 64"
    )
    context: Dimension = Field(64, description="tokens per row")
    vocab: Dimension | None = Field(None, description="default: the tokenizer's size")
    positions: Literal["rope", "learned"] = "rope"
    rope_base: float = Field(10000.0, gt=1.0)
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = Field(False, description="biases in linear layers (and LayerNorm)")
    tie_embeddings: bool = True
    dropout: Fraction = 0.0
    init_std: float = Field(0.02, gt=0.0)
    checkpoint_activations: bool = Field(False, description="recompute blocks in backward: less memory, more work")
    init_from: InitFrom = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"model.heads is {self.heads}, which does not divide model.width {self.width}: "
                f"choose heads from {divisors(self.width)}"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"model.kv_heads is {self.kv_heads}, which does not divide model.heads {self.heads}: "
                f"choose kv_heads from {divisors(self.heads)}"
            )
        if self.positions == "rope" and (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width/model.heads is {self.width // self.heads}, but rope rotates pairs: "
                "choose an even head dimension or positions: learned"
            )
        return self


class ResnetModel(Section):
    """ResNet v1.5 (trainer/models/resnet.py)."""

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50] = 18
    classes: Dimension = Field(description="number of classes; labels are 0 … classes-1")
    width: Dimension = Field(64, description="channels of the first stage; 64 in the paper")
    stem: Literal["imagenet", "small"] = Field("imagenet", description="small: 3×3 stride 1, no pooling (CIFAR-like)")
    dropout: Fraction = Field(0.0, description="before the classifier")
    zero_init_residual: bool = Field(True, description="last norm of each block starts at 0 (Goyal et al. 2017)")
    label_smoothing: Fraction = 0.0
    init_from: InitFrom = None


Model = Annotated[GptModel | ResnetModel, Field(discriminator="kind")]
