# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""VA-RED2, video adaptive redundancy reduction, as a plugin for MMAction2."""

from .installation import check_installation

check_installation()

from . import compat, quiet  # noqa: E402

quiet.apply()
compat.apply()

from .budget import set_budget  # noqa: E402
from .datasets import *  # noqa: E402, F403
from .deploy import optimize  # noqa: E402
from .engine import *  # noqa: E402, F403
from .evaluation import *  # noqa: E402, F403
from .models import dynamize, force_policy, static_cost  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['__version__', 'dynamize', 'force_policy', 'optimize', 'set_budget', 'static_cost']
