"""The `model` section: one class per kind of model."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator

from configs.errors import RecipeError
from configs.sections.section import Dimension, Fraction, Positive, Section, divisors

__all__ = [
    "OWN",
    "GptModel",
    "Model",
    "ResnetModel",
    "UserModel",
    "accepting_code_change",
    "accepts_code_change",
    "classes_of",
    "context_of",
]


OWN = "FILE.py:CLASS"
OWN_KIND = r"\.py:[A-Za-z_]\w*$"
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


class UserModel(Section):
    """A task of the user's own, in a Python file outside the checkout (trainer/api.py); its keys are its own."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(
        pattern=OWN_KIND, description="`FILE.py:CLASS`, relative to the working directory; further keys: its `Config`"
    )
    code_sha256: str | None = Field(None, description="of the file; written by Stoker into the run folder's recipe")
    _accepts_code_change: bool = PrivateAttr(False)

    @property
    def init_from(self) -> None:
        """Weights of Hugging Face have no place in it."""

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of its own."""
        return dict(self.model_extra or {})

    def setting(self, name: str, what_for: str) -> int:
        """A key of its own that the data needs. Raises RecipeError where it is missing or no positive number."""
        value = self.settings.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise RecipeError(
            f"model.{name} is {value!r}: {what_for} needs it; give the Config of {self.kind} a field `{name}: int`"
        )


def _tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return OWN if isinstance(kind, str) and re.search(OWN_KIND, kind) else str(kind)


Model = Annotated[
    Annotated[GptModel, Tag("gpt")] | Annotated[ResnetModel, Tag("resnet")] | Annotated[UserModel, Tag(OWN)],
    Discriminator(_tag),
]


def classes_of(model: ResnetModel | UserModel) -> int:
    """Of image labels. Raises RecipeError where a model of the user's own does not say."""
    return model.setting("classes", "data.kind image") if isinstance(model, UserModel) else model.classes


def context_of(model: GptModel | UserModel) -> int:
    """Tokens in a row. Raises RecipeError where a model of the user's own does not say."""
    return model.setting("context", "text") if isinstance(model, UserModel) else model.context


def accepts_code_change(model: Model) -> bool:
    """Whether a run may go on with another version of the user's file than it began with."""
    return isinstance(model, UserModel) and model._accepts_code_change


def accepting_code_change(model: Model) -> Model:
    """The same, and it may."""
    if not isinstance(model, UserModel):
        return model
    copy = model.model_copy()
    copy._accepts_code_change = True
    return copy
