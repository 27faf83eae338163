"""ResNet v1.5 (He et al. 2015, with the stride in the 3×3 convolution), parameters named as in torchvision."""

from torch import Tensor, nn

from configs.sections.model_section import ResnetModel
from trainer.models.norm import BatchNorm2d

__all__ = ["BLOCKS_PER_STAGE", "BasicBlock", "Bottleneck", "Resnet"]


BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Resnet(nn.Module):
    """Image classifier of the recipe's `model` section: images_BCHW (normalised) -> logits_BC."""

    def __init__(self, config: ResnetModel, channels: int) -> None:
        super().__init__()
        self.config = config
        block = Bottleneck if config.depth == 50 else BasicBlock
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, config.width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _conv3x3(channels, config.width)
            self.maxpool = nn.Identity()
        self.bn1 = BatchNorm2d(config.width)
        self.relu = nn.ReLU(inplace=True)
        inner = config.width
        for stage, blocks in enumerate(BLOCKS_PER_STAGE[config.depth]):
            outer = config.width * 2**stage * block.expansion
            layer = [block(inner, config.width * 2**stage, stride=2 if stage else 1)]
            layer += [block(outer, config.width * 2**stage) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
            inner = outer
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(inner, config.classes)
        self._initialise(config.zero_init_residual)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of each image. Any height and width."""
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        for stage in range(4):
            x_BCHW = self.get_submodule(f"layer{stage + 1}")(x_BCHW)
        logits_BC: Tensor = self.fc(self.dropout(x_BCHW.mean(dim=(2, 3))))
        return logits_BC

    def _initialise(self, zero_init_residual: bool) -> None:
        """Kaiming normal by fan-out (He et al. 2015); each block's last norm at 0 (Goyal et al. 2017, section 5.1)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inner: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inner, width, stride)
        self.bn1 = BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = BatchNorm2d(width)
        self.downsample = _shortcut(inner, width, stride)

    @property
    def last_norm(self) -> BatchNorm2d:
        """Before the sum: at weight 0 the block passes its input on."""
        return self.bn2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`inner` channels in, `width` out; height and width divided by the stride."""
        y_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        sum_BCHW: Tensor = self.relu(y_BCHW + self.downsample(x_BCHW))
        return sum_BCHW


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inner: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outer = width * self.expansion
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inner, outer, stride)

    @property
    def last_norm(self) -> BatchNorm2d:
        """Before the sum: at weight 0 the block passes its input on."""
        return self.bn3

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`inner` channels in, 4·`width` out; height and width divided by the stride."""
        y_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.relu(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        sum_BCHW: Tensor = self.relu(y_BCHW + self.downsample(x_BCHW))
        return sum_BCHW


def _shortcut(inner: int, outer: int, stride: int) -> nn.Module:
    if stride == 1 and inner == outer:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inner, outer, 1, stride=stride, bias=False), BatchNorm2d(outer))


def _conv3x3(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
