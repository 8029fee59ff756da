# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Objects that are made for one module and cannot be copied with it."""

from typing import Any


class Made:
    """What a module's first call makes; copies of the module make their own."""

    def __deepcopy__(self, memo: Any) -> Any:
        return type(self)()

    def __reduce__(self) -> tuple:
        return type(self), ()
