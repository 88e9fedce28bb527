"""Weights of one network copied into a network of another configuration, as far as they fit."""

from __future__ import annotations

import dataclasses

import torch

from lowlat_seg_ros.lab.baselines.learned import embed
from lowlat_seg_ros.network.checkpoint import weights
from lowlat_seg_ros.network.fast_track import Classifier
from lowlat_seg_ros.network.segmenter import Segmenter


def transfer(source: Segmenter, target: Segmenter) -> list[str]:
    """Copy what fits of ``source`` into ``target``; return the parts that stay reinitialised.

    Where the configurations differ, ``target`` begins with the same answers if it can:

    - Classifiers that answer more often per cell begin with the same answer for each.
    - A context head that also reads F_l begins by ignoring it.
    - Where fusion becomes a correction, the fast track's classifier is reinitialised.
    """
    state, fresh = weights(source), []
    new_fusion = target.config.residual_fusion != source.config.residual_fusion
    for name, parameter in weights(target).items():
        part = name.split(".")[0]
        mine, given = getattr(target, part), getattr(source, part)
        if part == "classifier" and new_fusion:
            fresh.append(part)
        elif isinstance(mine, Classifier) and _answers_more_than(mine, given):
            widen(mine, given)
        elif name == "context.merge.0.weight" and _skip_is_new(source, target):
            embed(state[name], parameter)
        elif name in state and state[name].shape == parameter.shape:
            with torch.no_grad():
                parameter.copy_(state[name])
        else:
            fresh.append(".".join(name.split(".")[:2]))
    return sorted(set(fresh))


def _answers_more_than(classifier: Classifier, other: Classifier) -> bool:
    """Whether ``classifier`` differs only in that it answers several times per cell, not once."""
    times = classifier.upsampling**2
    same = classifier.in_channels, classifier.out_channels
    return same == (other.in_channels, other.out_channels * times) and times > other.upsampling == 1


def widen(classifier: Classifier, other: Classifier) -> None:
    """Copy the weights of ``other``, which answers once per cell, for each answer of a cell."""
    with torch.no_grad():
        for mine, given in zip(classifier.parameters(), other.parameters(), strict=True):
            mine.copy_(given.repeat_interleave(classifier.upsampling**2, dim=0))


def _skip_is_new(source: Segmenter, target: Segmenter) -> bool:
    """Whether the context head differs only in that it also reads F_l, after its other inputs."""
    skip = target.config.context_skip
    wider = dataclasses.replace(source.config, context_skip=skip)
    sizes = ("backbone", "high_channels", "context_channels", "context_merge", "context_bins")
    same = all(getattr(wider, name) == getattr(target.config, name) for name in sizes)
    return same and skip > source.config.context_skip == 0
