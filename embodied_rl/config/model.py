"""What every section of a page is, and types that several share."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict

Count = Annotated[int, Ge(1)]
Widths = Annotated[tuple[Count, ...], MinLen(1)]


class Model(BaseModel):
    """Frozen, no unknown keys, no guesses about types, finite numbers only."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )
