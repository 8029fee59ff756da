# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Functions that take the place of those of other packages."""

import functools
from collections.abc import Callable
from typing import Any


def replaces(owner: Any, name: str) -> Callable[[Callable], Callable]:
    """Let a function take the place of another one, which it is called with first; only once.

    Args:
        owner: Module or class that has the other one.
        name: Its name there.
    """
    original = getattr(owner, name)

    def replace(function: Callable) -> Callable:
        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        if not hasattr(original, '__wrapped__'):
            setattr(owner, name, replacement)
        return function

    return replace
