"""Resnet under Hugging Face's names: the configuration and the place of every tensor."""

from collections.abc import Iterator

from configs.errors import ExportError
from configs.sections.model_section import ResnetModel
from trainer.huggingface.tensor_map import Architecture, TensorMapping, batch_norm, bias, linear
from trainer.models.resnet import BLOCKS_PER_STAGE, BasicBlock, Bottleneck

_DEFAULTS = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


def resnet_architecture(config: ResnetModel, channels: int) -> Architecture:
    """Raises ExportError for the small stem, which their class lacks."""
    if config.stem != "imagenet":
        raise ExportError(
            f"no Hugging Face class computes what this model does: ResNetForImageClassification has a 7×7 convolution "
            f"and pooling at its start, stem imagenet (is {config.stem})"
        )
    is_bottleneck = config.depth == 50
    return Architecture(
        "ResNetForImageClassification",
        "resnet",
        config={
            "num_channels": channels,
            "embedding_size": config.width,
            "hidden_sizes": [_outer(config, stage) for stage in range(4)],
            "depths": list(BLOCKS_PER_STAGE[config.depth]),
            "layer_type": "bottleneck" if is_bottleneck else "basic",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,  # v1.5: the stride is in the 3×3 convolution
        },
        defaults=_DEFAULTS,
        base_prefix="resnet.",
        mappings=tuple(_mappings(config, channels)),
    )


def _outer(config: ResnetModel, stage: int) -> int:
    block = Bottleneck if config.depth == 50 else BasicBlock
    outer: int = config.width * 2**stage * block.expansion
    return outer


def _mappings(config: ResnetModel, channels: int) -> Iterator[TensorMapping]:
    stem = "resnet.embedder.embedder"
    yield from _convolution(stem, "model.conv1", "model.bn1", (config.width, channels, 7, 7))
    inner = config.width
    for stage, blocks in enumerate(BLOCKS_PER_STAGE[config.depth]):
        for block in range(blocks):
            theirs, ours = f"resnet.encoder.stages.{stage}.layers.{block}", f"model.layer{stage + 1}.{block}"
            yield from _block(config, theirs, ours, inner, stage, strided=stage > 0 and block == 0)
            inner = _outer(config, stage)
    yield linear("classifier.1", "model.fc", (config.classes, inner))
    yield bias("classifier.1", "model.fc", config.classes, is_ours=True)


def _block(
    config: ResnetModel, theirs: str, ours: str, inner: int, stage: int, *, strided: bool
) -> Iterator[TensorMapping]:
    width, outer = config.width * 2**stage, _outer(config, stage)
    shapes: list[tuple[int, ...]] = [(width, inner, 3, 3), (width, width, 3, 3)]
    if config.depth == 50:
        shapes = [(width, inner, 1, 1), (width, width, 3, 3), (outer, width, 1, 1)]
    # Their layers have no names but numbers, in the order of the forward pass.
    for i, shape in enumerate(shapes):
        yield from _convolution(f"{theirs}.layer.{i}", f"{ours}.conv{i + 1}", f"{ours}.bn{i + 1}", shape)
    if strided or inner != outer:
        downsample = f"{ours}.downsample"
        yield from _convolution(f"{theirs}.shortcut", f"{downsample}.0", f"{downsample}.1", (outer, inner, 1, 1))


def _convolution(theirs: str, ours: str, our_norm: str, shape: tuple[int, ...]) -> Iterator[TensorMapping]:
    yield linear(f"{theirs}.convolution", ours, shape)
    yield from batch_norm(f"{theirs}.normalization", our_norm, shape[0])
