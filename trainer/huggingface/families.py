"""Which of Hugging Face's language models computes what a Gpt of given options does."""

from dataclasses import dataclass, field
from typing import Any

from configs.errors import ExportError
from configs.sections.model_section import GptModel

ALL_HEADS = "as many as heads"


@dataclass(frozen=True)
class Family:
    """A Hugging Face class with the options of ours that it computes exactly."""

    class_name: str
    model_type: str
    needs: dict[str, Any]  # option -> the only value
    mlp: dict[str, str]  # our layer -> theirs
    activation_key: str
    activation: str
    eps_key: str
    has_norm_bias: bool
    bias_keys: tuple[str, ...]  # switch the biases of their linear layers
    fixed: dict[str, Any] = field(default_factory=dict)  # what else they could compute, and ours cannot
    defaults: dict[str, Any] = field(default_factory=dict)  # of keys that a config.json leaves out

    def obstacles(self, options: dict[str, Any]) -> list[str]:
        """What would have to differ in `options`."""
        return [f"{name} {need} (is {options[name]})" for name, need in self.needs.items() if options[name] != need]


_GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_TANH_GELU = "gelu_pytorch_tanh"

LLAMA = Family(
    class_name="LlamaForCausalLM",
    model_type="llama",
    needs={"positions": "rope", "norm": "rmsnorm", "activation": "swiglu"},
    mlp=_GATED,
    activation_key="hidden_act",
    activation="silu",
    eps_key="rms_norm_eps",
    has_norm_bias=False,
    bias_keys=("attention_bias", "mlp_bias"),
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
)
GPT2 = Family(
    class_name="GPT2LMHeadModel",
    model_type="gpt2",
    needs={"positions": "learned", "norm": "layernorm", "activation": "gelu", "kv_heads": ALL_HEADS},
    mlp={"up": "c_fc", "down": "c_proj"},
    activation_key="activation_function",
    activation=_TANH_GELU,
    eps_key="layer_norm_epsilon",
    has_norm_bias=True,
    bias_keys=(),
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    defaults={
        "activation_function": _TANH_GELU,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
)
ARCEE = Family(
    class_name="ArceeForCausalLM",
    model_type="arcee",
    needs={"positions": "rope", "norm": "rmsnorm", "activation": "gelu"},
    mlp={"up": "up_proj", "down": "down_proj"},
    activation_key="hidden_act",
    activation=_TANH_GELU,
    eps_key="rms_norm_eps",
    has_norm_bias=False,
    bias_keys=("attention_bias", "mlp_bias"),
    defaults={**LLAMA.defaults, "hidden_act": "relu2", "rms_norm_eps": 1e-5},
)
STARCODER2 = Family(
    class_name="Starcoder2ForCausalLM",
    model_type="starcoder2",
    needs={"positions": "rope", "norm": "layernorm", "activation": "gelu"},
    mlp={"up": "c_fc", "down": "c_proj"},
    activation_key="hidden_act",
    activation=_TANH_GELU,
    eps_key="norm_epsilon",
    has_norm_bias=True,
    bias_keys=("use_bias",),
    fixed={"sliding_window": None},
    defaults={
        "hidden_act": _TANH_GELU,
        "norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "use_bias": True,
        "sliding_window": None,
        "num_key_value_heads": 2,
    },
)
STABLELM = Family(
    class_name="StableLmForCausalLM",
    model_type="stablelm",
    needs={"positions": "rope", "norm": "layernorm", "activation": "swiglu", "bias": False},
    mlp=_GATED,
    activation_key="hidden_act",
    activation="silu",
    eps_key="layer_norm_eps",
    has_norm_bias=True,
    bias_keys=("use_qkv_bias",),
    fixed={"qk_layernorm": False, "use_parallel_residual": False},
    defaults={
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "partial_rotary_factor": 0.25,
        "num_key_value_heads": 32,
    },
)
FAMILIES = (LLAMA, GPT2, ARCEE, STARCODER2, STABLELM)


def family_of(config: GptModel) -> Family:
    """Raises ExportError, with what each of their classes would need, where none computes the same."""
    options: dict[str, Any] = {
        "positions": config.positions,
        "norm": config.norm,
        "activation": config.activation,
        "bias": config.bias,
        "kv_heads": ALL_HEADS if config.kv_heads in (None, config.heads) else config.kv_heads,
    }
    for family in FAMILIES:
        if not family.obstacles(options):
            return family
    nearest = "; ".join(f"{family.class_name} needs {', '.join(family.obstacles(options))}" for family in FAMILIES)
    raise ExportError(f"no Hugging Face class computes what this model does: {nearest}")
