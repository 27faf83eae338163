"""What all sections of a recipe share."""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BEYOND", "NonNegative", "Positive", "Rate", "Section", "divisors"]


BEYOND = 2**63  # what JSON, torch and file systems take
Positive = Annotated[int, Field(gt=0, lt=BEYOND)]
NonNegative = Annotated[int, Field(ge=0, lt=BEYOND)]
Dimension = Annotated[int, Field(gt=0, le=2**24)]  # of a tensor, which has two of them and more
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values are not coerced between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False)


def divisors(value: int) -> str:
    """All divisors, ascending, as a list for a message."""
    small = [d for d in range(1, math.isqrt(value) + 1) if value % d == 0]
    return ", ".join(str(d) for d in sorted({*small, *(value // d for d in small)}))
