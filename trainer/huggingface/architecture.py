"""Recipe -> the Hugging Face model that computes the same."""

from configs.errors import ExportError
from configs.sections.model_section import GptModel, Model, UserModel
from trainer.huggingface.gpt_tensors import gpt_architecture
from trainer.huggingface.resnet_tensors import resnet_architecture
from trainer.huggingface.tensor_map import Architecture


def architecture(model: Model, inputs: int) -> Architecture:
    """`inputs`: the vocabulary of a Gpt, the channels of a Resnet. Raises ExportError where no class fits."""
    if isinstance(model, GptModel):
        return gpt_architecture(model, inputs)
    if isinstance(model, UserModel):
        raise ExportError(f"a model of your own ({model.kind}) has no class of Hugging Face's")
    return resnet_architecture(model, inputs)
