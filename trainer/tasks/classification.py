"""Image classification: one label per image."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.sections.data_section import ImageData
from configs.sections.model_section import ResnetModel
from configs.sections.optimizer_section import Optimizer
from data.source import IGNORED
from trainer.models.cost import resnet_flops_per_image
from trainer.models.resnet import Resnet
from trainer.tasks.task_protocol import ParameterGroup, mean_per_target, parameter_groups

__all__ = ["DEFAULT_MEAN", "DEFAULT_STD"]


# Of ImageNet's training images, in 0 … 1, as everybody uses them; and a neutral choice for grey images.
DEFAULT_MEAN = {1: [0.5], 3: [0.485, 0.456, 0.406]}
DEFAULT_STD = {1: [0.5], 3: [0.229, 0.224, 0.225]}


class ClassificationModule(nn.Module):
    """The model with normalisation before it and the loss after it."""

    def __init__(self, model: Resnet, mean: list[float], std: list[float], label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.mean = mean
        self.std = std
        self.label_smoothing = label_smoothing

    def forward(self, images_BHWC: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """uint8 images, int64 labels -> sums "loss" (nats), "weight" (labelled images) and "correct" (of these)."""
        logits_BC = self.model(self.normalise(images_BHWC)).float()
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits_BC, labels_B, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        correct = (logits_BC.argmax(dim=1) == labels_B).sum()
        return {"loss": loss, "weight": (labels_B != IGNORED).sum().float(), "correct": correct.float()}

    def normalise(self, images_BHWC: Tensor) -> Tensor:
        """Bytes -> zero mean and unit deviation per channel, images_BCHW in the parameters' dtype.

        Computed in fp32.
        """
        std = torch.tensor(self.std, device=images_BHWC.device)
        mean = torch.tensor(self.mean, device=images_BHWC.device)
        normal_BHWC = (images_BHWC / 255.0 - mean) / std
        normal_BCHW = normal_BHWC.to(self.model.fc.weight.dtype).permute(0, 3, 1, 2)
        if normal_BCHW.device.type != "cpu":
            return normal_BCHW  # with its channels last in memory, as tensor cores like them
        # oneDNN of torch 2.13 writes out of bounds in the backward of channels-last convolutions with few input
        # channels. New strides, as a single channel looks channels-last even where it is contiguous.
        return normal_BCHW.flatten(1).view(normal_BCHW.shape)


class ClassificationTask:
    """Trains a Resnet."""

    units: Literal["tokens", "images", "samples"] = "images"

    def __init__(self, config: ResnetModel, data: ImageData, optimizer: Optimizer) -> None:
        mean, std = data.mean or DEFAULT_MEAN[data.channels], data.std or DEFAULT_STD[data.channels]
        model = Resnet(config, data.channels)
        self.module: nn.Module = ClassificationModule(model, mean, std, config.label_smoothing)
        self._optimizer = optimizer
        self._flops_per_image = resnet_flops_per_image(model, data.size)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Weights of convolutions and of the classifier decay, norms and biases do not."""
        return parameter_groups(self.module, self._optimizer)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss in nats per image, and the fraction of images whose likeliest class is right."""
        return {"loss": mean_per_target(sums, "loss"), "accuracy": mean_per_target(sums, "correct")}

    def samples(self, forward: Callable[[Tensor], Tensor], device: torch.device, length: int) -> str | None:
        """None: a classifier makes nothing to look at."""
        return None

    def flops_per_target(self) -> float:
        """Of one training image, forward and backward."""
        return self._flops_per_image
