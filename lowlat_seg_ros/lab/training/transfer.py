"""Weights of one network copied into a network of another configuration, as far as they fit."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lowlat_seg_ros.lab.baselines.learned import embed
from lowlat_seg_ros.network.checkpoint import weights
from lowlat_seg_ros.network.heads import Classifier
from lowlat_seg_ros.network.segmenter import Segmenter


def transfer(source: Segmenter, target: Segmenter) -> list[str]:
    """Copy what fits of ``source`` into ``target``; return the parts that stay reinitialised.

    Where the configurations differ, ``target`` begins with the same answers if it can:

    - Classifiers that answer more often per cell begin with the same answer for each.
    - A context head that also reads F_l begins by ignoring it.
    - The convolution that all readers of F_l share begins as AdaptNet's first, and the reverse;
      what predictor and selector do with it stays as it was, to be trained further.
    - Where fusion becomes a correction, the fast track's classifier is reinitialised.
    """
    state, fresh = weights(source), []
    new_fusion = target.config.residual_fusion != source.config.residual_fusion
    for name, parameter in weights(target).items():
        part = name.split(".")[0]
        mine, given = getattr(target, part), getattr(source, part)
        before = _counterpart(name, state, target)
        if part == "classifier" and new_fusion:
            fresh.append(part)
        elif isinstance(mine, Classifier) and answers_more_than(mine, given):
            widen(mine, given)
        elif name == "context.merge.0.weight" and _skip_is_new(source, target):
            embed(state[name], parameter)
        elif before in state and state[before].shape == parameter.shape:
            with torch.no_grad():
                parameter.copy_(state[before])
        else:
            fresh.append(".".join(name.split(".")[:2]))
    return sorted(set(fresh))


def answers_more_than(classifier: Classifier, other: Classifier) -> bool:
    """Whether ``classifier`` reads the same features for the same classes, but answers more often.

    That is, several times per cell, where ``other`` answers once.
    """
    times = classifier.upsampling**2
    sizes = (classifier.in_channels, classifier.out_channels)
    same = sizes == (other.in_channels, other.out_channels * times)
    return same and times > 1 and other.upsampling == 1


def widen(classifier: Classifier, other: Classifier) -> None:
    """Copy the weights of ``other``, which answers once per cell, for each answer of a cell."""
    times = classifier.upsampling**2
    with torch.no_grad():
        classifier.weight.copy_(other.weight.repeat_interleave(times, dim=0))
        if classifier.bias is not None and other.bias is not None:
            classifier.bias.copy_(other.bias.repeat_interleave(times, dim=0))


def _counterpart(name: str, state: dict[str, Tensor], target: Segmenter) -> str:
    """The name in ``state`` of a weight of ``target``.

    Another one where only one of both networks has a shared reduction.
    """
    for mine, other in (("shared.reduce", "adapt.first"), ("adapt.first", "shared.reduce")):
        kernel = f"{mine}.0.weight", f"{other}.0.weight"
        if name.startswith(mine) and name not in state and kernel[1] in state:
            same = state[kernel[1]].shape == weights(target)[kernel[0]].shape
            return name.replace(mine, other) if same else name
    return name


def _skip_is_new(source: Segmenter, target: Segmenter) -> bool:
    """Whether the context head differs only in that it also reads F_l, after its other inputs."""
    skip = target.config.context_skip
    wider = dataclasses.replace(source.config, context_skip=skip)
    sizes = ("backbone", "high_channels", "context_channels", "context_merge", "context_bins")
    same = all(getattr(wider, name) == getattr(target.config, name) for name in sizes)
    return same and skip > source.config.context_skip == 0
