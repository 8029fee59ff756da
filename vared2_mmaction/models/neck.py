# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The neck: charge what a backbone decided against the cost of the static network."""

from typing import Any, NamedTuple

from mmaction.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from ..ops import COLUMNS
from .dynamize import explain_to_stock_parts


@explain_to_stock_parts
class ModulatedFeatures(NamedTuple):
    """What the neck hands to the head; R views (clips) in all, those of a video together."""

    features: Tensor
    """Those of the stock backbone; of a 2-D one averaged over the segments of each view,
    (N, C, views, H, W)."""
    ratio: Tensor
    """(R,) executed over static multiply-adds of the backbone's convolutions, in (0, 1]; the
    gradient reaches the gates."""
    cost: Tensor
    """(R, 3) multiply-adds: executed, static, and those of gates and cheap operations."""
    policy: Tensor
    """(R, layers, 2): p_c and p_t of each dynamic layer; -1 where its weights are not finite."""

    def squeeze(self, dim: int) -> 'ModulatedFeatures':
        """Itself: ``Recognizer2D`` asks for one view, but how views go together is the head's."""
        return self


@MODELS.register_module()
class SoftModulationGateNeck(BaseModule):
    """Turn decisions into compute ratio and policy for the head.

    Takes the pair that every dynamic backbone returns; has no parameters.
    """

    def forward(self, x: Any, data_samples: Any = None) -> tuple[ModulatedFeatures, dict]:
        """Charge the decisions.

        Args:
            x: Features and decisions, (N, 1 + layers, 5 + 1), of a dynamic backbone; within
                ``Recognizer2D`` (N, C, T, H, W) and (N, 1 + layers, T, 5 + frames of a clip).
            data_samples: Not needed.

        Returns:
            Features with the compute of each view, and an empty dictionary of losses.

        Raises:
            TypeError: If x is not what a dynamic backbone returns.
            ValueError: If features and decisions are of different numbers of clips, or clips have
                another number of frames than the backbone's clips.
        """
        features, decisions = _unpack(x)
        if decisions.dim() == 4:
            if len(features) != len(decisions):
                raise ValueError(
                    f'SoftModulationGateNeck: expected features of {len(decisions)} clips, got '
                    f'{tuple(features.shape)}: Recognizer2D cannot tell the clips apart of a '
                    'backbone that pools segments (temporal_pool)'
                )
            length, frames = decisions.shape[3] - len(COLUMNS), decisions.shape[2]
            if frames % length:  # frames of several clips shared a gate
                raise ValueError(
                    'SoftModulationGateNeck: expected clips whose number of frames is a multiple '
                    f"of num_segments={length}, the backbone's, got clips of {frames} frames"
                )
            decisions = decisions[:, :, ::length]
            features = features.unflatten(2, (decisions.shape[2], -1)).mean(3)
            decisions = decisions.transpose(1, 2).flatten(0, 1)
        cost = decisions[..., :3].sum(1)
        policy = decisions[:, 1:, 3:5].detach().nan_to_num(nan=-1.0).long()
        return ModulatedFeatures(features, cost[:, 0] / cost[:, 1], cost.detach(), policy), {}


def _unpack(x: Any) -> tuple[Any, Tensor]:
    pair = isinstance(x, tuple | list) and len(x) == 2
    if not pair or not isinstance(x[1], Tensor) or x[1].dim() < 3 or x[1].shape[-1] <= len(COLUMNS):
        found = f'a tensor of shape {tuple(x.shape)}' if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            'SoftModulationGateNeck expects the features and decisions of a dynamic backbone '
            f'(VARED2ResNet, VARED2ResNet3d, VARED2ResNet2Plus1d, VARED2X3D, dynamize), got {found}'
        )
    return x[0], x[1]
