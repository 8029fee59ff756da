# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Triton's interpreter, a third quicker."""

import functools
from typing import Any


def quicken() -> None:
    """Keeps functions that kernels call from replacing what they use of Triton anew in every call:
    the launch of the kernel, or the first call, has done so, and nothing takes it back before."""
    try:
        from triton import language
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        return
    ever = InterpretedFunction.__call__

    @functools.cache
    def used(function: Any) -> tuple[Any, ...]:
        known = function.__globals__.values()
        return tuple(part for part in (language, language.core) if any(v is part for v in known))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(language.core.is_builtin(part.load) for part in used(self.fn)):
            return ever(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    InterpretedFunction.__call__ = call
