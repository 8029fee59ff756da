# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Action detection: MMAction2's RoI head with the budget loss, for mmdet's ``FastRCNN``.

The only module that needs mmdet and mmcv's operators.
"""

from typing import Any

from mmaction.models.common import Conv2plus1d
from mmaction.models.roi_heads.roi_head import AVARoIHead
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from ..ops import ComputationBudgetLoss, SoftModulationGate
from .heads import BudgetPart
from .neck import ModulatedFeatures

# A detector's parts are built in mmdet's scope, from where only the root registry is in sight.
# These are asked for by their bare name: the convolution by R(2+1)D, the others by our parts.
for part in (Conv2plus1d, SoftModulationGate, ComputationBudgetLoss):
    ROOT_MODELS.register_module(module=part)


# In both registries: the stock head is in mmdet's, everything else of ours in MMAction2's.
@MMDET_MODELS.register_module()
@MODELS.register_module()
class VARED2AVARoIHead(BudgetPart, AVARoIHead):
    """MMAction2's RoI head with the budget loss.

    A clip has many boxes with several labels each, so every clip pays for its compute:
    ``correct_only`` of the budget loss has no effect here.

    Args:
        loss_budget: Config of the budget loss.
        **kwargs: Arguments of ``AVARoIHead``.
    """

    def loss(
        self,
        x: Any,
        rpn_results_list: list[InstanceData],
        data_samples: list[ActionDataSample],
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Stock losses and ``loss_budget``; ``compute_ratio`` is for the log only.

        Args:
            x: What the neck returns for N clips.
            rpn_results_list: Proposals of each clip.
            data_samples: Boxes and labels of each clip.
        """
        modulated = self._from_neck(x)
        losses = super().loss(modulated.features, rpn_results_list, data_samples, **kwargs)
        every_clip = modulated.ratio.new_ones(len(data_samples))
        return losses | self._budget_losses(modulated, every_clip)

    def predict(
        self,
        x: Any,
        rpn_results_list: list[InstanceData],
        data_samples: list[ActionDataSample],
        **kwargs: Any,
    ) -> list[InstanceData]:
        """Stock detections; the compute of each clip is put on its data sample.

        Arguments as for :meth:`loss`. As in the stock head, one clip at a time.

        Raises:
            FloatingPointError: If scores are not finite; names the clip.
        """
        modulated = self._from_neck(x)
        results = super().predict(modulated.features, rpn_results_list, data_samples, **kwargs)
        self._note_compute(modulated, data_samples, [result.scores for result in results])
        return results

    def _from_neck(self, x: Any) -> ModulatedFeatures:
        """``FastRCNN`` hands on the pair that a neck returns; recognizers take it apart."""
        pair = isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], dict)
        return self._modulated(x[0] if pair else x)
