"""How the tensors of a Hugging Face model lie in ours: plain data, used in both directions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorMapping:
    """Their tensor `theirs` of `shape` is rows [first_row, …) of our `ours`; its transpose where `transposed`.

    Without `ours` it is something that our model does without, and must be zero for both to compute the same.
    """

    theirs: str
    shape: Shape
    ours: str | None
    first_row: int = 0
    transposed: bool = False
    is_buffer: bool = False  # of ours: a statistic, kept in fp32
    is_count: bool = False  # int64, of no influence in evaluation

    @property
    def own_shape(self) -> Shape:
        """As our model lays the same elements out."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def elements(self) -> tuple[int, int]:
        """[start, stop) in our flattened tensor."""
        columns = prod(self.own_shape[1:])
        return self.first_row * columns, self.first_row * columns + prod(self.shape)


@dataclass(frozen=True)
class Architecture:
    """A Hugging Face model that computes what ours does, and where its tensors come from."""

    class_name: str
    model_type: str
    config: dict[str, Any]  # what decides the result: written by an export, demanded by an import
    defaults: Mapping[str, Any]  # of that class, for keys that a config.json leaves out
    base_prefix: str  # tensors of a file saved without its head lack it
    mappings: tuple[TensorMapping, ...]


def own_shapes(mappings: tuple[TensorMapping, ...]) -> dict[str, Shape]:
    """Shape of each of our tensors, put together from the rows of theirs."""
    shapes: dict[str, Shape] = {}
    for mapping in mappings:
        if mapping.ours is not None:
            rows = shapes[mapping.ours][0] if mapping.ours in shapes else 0
            shapes[mapping.ours] = (rows + mapping.own_shape[0], *mapping.own_shape[1:])
    return shapes


def linear(theirs: str, ours: str, shape: Shape, *, first_row: int = 0, transposed: bool = False) -> TensorMapping:
    """The weight of a layer whose own shape (outputs, inputs) is `shape`."""
    stored = shape[::-1] if transposed else shape
    return TensorMapping(f"{theirs}.weight", stored, f"{ours}.weight", first_row, transposed)


def bias(theirs: str, ours: str, size: int, *, first_row: int = 0, is_ours: bool) -> TensorMapping:
    """A bias that they have; ours does without unless `is_ours`."""
    return TensorMapping(f"{theirs}.bias", (size,), f"{ours}.bias" if is_ours else None, first_row)


def batch_norm(theirs: str, ours: str, channels: int) -> Iterator[TensorMapping]:
    """Weight, bias and running statistics; their count of batches has no twin in ours."""
    for name in ("weight", "bias"):
        yield TensorMapping(f"{theirs}.{name}", (channels,), f"{ours}.{name}")
    for name in ("running_mean", "running_var"):
        yield TensorMapping(f"{theirs}.{name}", (channels,), f"{ours}.{name}", is_buffer=True)
    yield TensorMapping(f"{theirs}.num_batches_tracked", (), None, is_count=True)
