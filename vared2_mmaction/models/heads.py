# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock heads that also see the compute of each view."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from mmaction.models import heads
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from torch import Tensor, nn

from ..errors import OPTIONS, check, check_arguments, given_options
from ..ops import ComputationBudgetLoss
from ..replacing import replaces
from .blocks import derive
from .neck import ModulatedFeatures

_NAMES = ('filename', 'frame_dir', 'img_key', 'video_id')
"""Where pipelines keep what a sample is called."""


class BudgetPart(nn.Module):
    """Mixin: a stock head that holds the computation-budget loss.

    In training it adds ``loss_budget`` and logs ``compute_ratio``; in test it puts
    ``compute_ratio``, ``compute_gmacs``, ``overhead_gmacs`` (means over views) and ``policy``,
    (views, layers, 2), on every data sample.

    Args:
        loss_budget: Config of the budget loss.
    """

    def __init__(self, *args: Any, loss_budget: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._take_budget(loss_budget)

    def _take_budget(self, loss_budget: dict | None) -> None:
        options = given_options('loss_budget', loss_budget)
        if 'type' not in options:
            check_arguments('loss_budget', options, ComputationBudgetLoss)
        self.loss_budget = MODELS.build({'type': 'ComputationBudgetLoss', **options})

    def _budget_losses(self, x: ModulatedFeatures, correct: Tensor) -> dict[str, Tensor]:
        """What a head adds to its losses; ``correct``: whether each of N videos is classified
        correctly, (N,). ``compute_ratio`` is for the log only."""
        ratio = x.ratio.view(len(correct), -1).mean(1)
        loss = self.loss_budget(ratio, correct)
        return {'loss_budget': loss, 'compute_ratio': ratio.detach().mean().float()}

    def _note_compute(
        self, x: ModulatedFeatures, samples: list[ActionDataSample], scores: list[Tensor]
    ) -> None:
        """Put compute and policy on samples; ``scores`` are those of each, checked before."""
        finite = torch.stack([score.isfinite().all() for score in scores]).tolist()
        if not all(finite):
            number = finite.index(False)
            name = next(filter(None, map(samples[number].get, _NAMES)), f'number {number}')
            raise FloatingPointError(
                f'{type(self).__name__}: the scores of video {name!r} are not finite: expected '
                'finite weights in the checkpoint and finite frames'
            )
        views = len(x.ratio) // len(samples)
        ratios = x.ratio.view(-1, views).mean(1).tolist()
        costs = (x.cost.view(-1, views, 3).mean(1) / 1e9).tolist()
        for i, sample in enumerate(samples):
            sample.compute_ratio = ratios[i]
            sample.compute_gmacs, _, sample.overhead_gmacs = costs[i]
            # A view of the batch would bring all of it into every sample of a dump.
            sample.policy = x.policy[i * views : (i + 1) * views].clone()

    def _modulated(self, x: Any) -> ModulatedFeatures:
        if not _is_modulated(x):
            raise TypeError(
                f'{type(self).__name__} expects what SoftModulationGateNeck returns, got '
                f'{type(x).__name__}: the model needs neck=dict(type="SoftModulationGateNeck")'
            )
        return ModulatedFeatures(*x)


def _is_modulated(x: Any) -> bool:
    # The chunks of `max_testing_views` come back as a plain tuple.
    return isinstance(x, tuple) and len(x) == len(ModulatedFeatures._fields)


def _is_2d(num_segs: int | None = None, fcn_test: bool = False, **_: Any) -> bool:
    """Whether ``Recognizer2D`` asks, for scores of clips and not of all positions."""
    return num_segs is not None and not fcn_test


class BudgetHead(BudgetPart):
    """Mixin: a stock classification head with the computation-budget loss."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Classify; the answer is that of the stock head."""
        features = self._modulated(x).features
        if _is_2d(**kwargs):
            features = self._join_views(features)
        return super().forward(features, *args, **kwargs)

    def _join_views(self, features: Tensor) -> Tensor:
        """What the head classifies, of (N, C, views, H, W): the mean of all segments of a video."""
        return features.mean(2)

    def loss(self, feats: Any, data_samples: list[ActionDataSample], **kwargs: Any) -> dict:
        """Stock losses and ``loss_budget``; ``compute_ratio`` is for the log only."""
        x = self._modulated(feats)
        scores = self(x, **kwargs)
        losses = self.loss_by_feat(scores, data_samples)  # type: ignore[operator]
        return losses | self._budget_losses(x, self._correct(scores, data_samples))

    def predict(
        self, feats: Any, data_samples: list[ActionDataSample], **kwargs: Any
    ) -> list[ActionDataSample]:
        """Stock predictions with the compute of each video.

        Raises:
            FloatingPointError: If scores are not finite; names the video.
        """
        x = self._modulated(feats)
        samples = super().predict(x, data_samples, **kwargs)  # type: ignore[misc]
        self._note_compute(x, samples, [sample.pred_score for sample in samples])
        return samples

    def _correct(self, scores: Tensor, data_samples: list[ActionDataSample]) -> Tensor:
        """Whether each clip is classified correctly, (N,); all are where labels are many."""
        if self.multi_class:
            return scores.new_ones(len(scores))
        labels = torch.stack([sample.gt_label for sample in data_samples]).to(scores.device)
        # A soft label (mixup, cutmix) is a distribution: its likeliest class is the one to meet.
        labels = labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0]
        return (scores.detach().argmax(1) == labels).to(scores.dtype)


class FrameBudgetHead(BudgetHead):
    """Mixin: the same for a head that scores frame by frame and averages the scores of a view.

    Scores are linear in the features, so that every frame may be the mean of its view's.
    """

    num_segments: int
    is_shift: bool
    temporal_pool: bool

    def _join_views(self, features: Tensor) -> Tensor:
        frames = self.num_segments // (2 if self.is_shift and self.temporal_pool else 1)
        return features.transpose(1, 2).flatten(0, 1).repeat_interleave(frames, 0)


@MODELS.register_module()
class VARED2TSNHead(BudgetHead, heads.TSNHead):
    """TSN's head with the budget loss."""


@MODELS.register_module()
class VARED2I3DHead(BudgetHead, heads.I3DHead):
    """I3D's and R(2+1)D's head with the budget loss."""


@MODELS.register_module()
class VARED2X3DHead(BudgetHead, heads.X3DHead):
    """X3D's head with the budget loss."""


_REFUSED: dict[type[heads.BaseHead], str] = {
    heads.FeatureHead: 'has no loss; it takes the features of a dynamic network by itself, as '
    'cls_head=dict(type="FeatureHead")',
    heads.GCNHead: 'classifies skeletons, whose networks have no neck',
    heads.TRNHead: 'relates the frames of a clip to each other, but SoftModulationGateNeck '
    'averages them',
    heads.TSNAudioHead: 'classifies sound, whose networks have no neck',
}


@MODELS.register_module(name='VARED2Head')
def build_budget_head(head: dict, loss_budget: dict | None = None) -> nn.Module:
    """Any stock classification head, such as SlowFast's, with the budget loss, from a config.

    Args:
        head: Config of the stock head.
        loss_budget: Config of the budget loss.

    Raises:
        ValueError: If the head is no config.
        TypeError: If it is of another kind, has losses of its own, or needs the features of every
            frame: the neck hands over the mean of a view's segments.
    """
    check('VARED2Head: head', head, OPTIONS)
    stock = MODELS.build(head)
    kind: Any = type(stock)
    if not isinstance(stock, heads.BaseHead):
        raise TypeError(f'VARED2Head: expected a classification head, got {kind.__name__}')
    for refused, reason in _REFUSED.items():
        if isinstance(stock, refused):
            raise TypeError(f'VARED2Head: {kind.__name__} {reason}')
    if (kind.loss, kind.predict) != (heads.BaseHead.loss, heads.BaseHead.predict):
        raise TypeError(
            f'VARED2Head: {kind.__name__} has a loss or predictions of its own; expected a head '
            'with those of BaseHead'
        )
    frames = 'num_segs' in inspect.signature(kind.forward).parameters
    if frames and kind not in (heads.TSNHead, heads.TPNHead, heads.TSMHead):
        raise TypeError(
            f'VARED2Head: {kind.__name__} may need the features of every frame, but '
            'SoftModulationGateNeck averages them; VARED2TSNHead classifies the mean'
        )
    stock.__class__ = derive(FrameBudgetHead if kind is heads.TSMHead else BudgetHead, kind)
    stock._take_budget(loss_budget)
    return stock


@replaces(heads.FeatureHead, 'forward')
def _extract_modulated(
    extract: Callable[..., Any], self: Any, x: Any, *args: Any, **kwargs: Any
) -> Any:
    """``FeatureHead.forward``, which also takes what the neck returns."""
    if not _is_modulated(x):
        return extract(self, x, *args, **kwargs)
    features = ModulatedFeatures(*x).features
    if isinstance(features, tuple) and self.backbone_name is None:
        self.backbone_name = 'slowfast'  # of which MMAction2's tool knows the bare name only
    if _is_2d(**kwargs):
        if self.temporal_type is None:
            raise ValueError(
                'FeatureHead: temporal_type=None keeps the features of every frame, but '
                "SoftModulationGateNeck averages them: expected 'avg'"
            )
        features = features.mean(2)
    return extract(self, features, *args, **kwargs)
