"""Topics of the graph on which a camera's images may come, and what makes the node listen to them.

Nothing here knows the middleware: topics are names and types, as the graph gives them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from lowlat_seg_ros.messages import IMAGE
from lowlat_seg_ros.ros.transports import TRANSPORTS

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

#: What ``image_transport`` adds to the topic of raw images, by the type of its messages.
SUFFIXES = {transport.kind: transport.below for transport in TRANSPORTS.values()}

#: The value of the parameter ``image_transport`` for each type.
NAMES = {transport.kind: name for name, transport in TRANSPORTS.items()}

#: Plugins of image_transport whose pictures this node does not read, by the end of their topics.
#: Some of them send CompressedImage as well.
FOREIGN = ("compressedDepth", "theora", "zstd", "h264", "h265")

#: How many other topics are named beside the closest one.
NAMED = 3


@dataclass(frozen=True)
class Topic:
    name: str
    kind: str


@dataclass(frozen=True)
class Subscription:
    """What the node listens to: ``image`` is the name to remap, ``base`` the topic that it stands
    for now, below which compressed images are, and ``kind`` the type of messages.
    """

    image: str
    base: str
    kind: str = IMAGE


def transport_of(topic: Topic) -> str:
    """The last part of its name where that is a plugin of image_transport unknown to this node."""
    last = topic.name.rpartition("/")[2]
    return last if last in FOREIGN else ""


def usable(topics: Sequence[Topic]) -> list[Topic]:
    """Those of ``topics`` that this node can segment, if it listens to them."""
    return [topic for topic in topics if topic.kind in SUFFIXES and not transport_of(topic)]


def way_to(topic: Topic, now: Subscription) -> str:
    """What to set so that the node listens to ``topic``, which is usable, instead of ``now``."""
    suffix, steps = SUFFIXES[topic.kind], []
    below = topic.name.removesuffix(suffix)
    if topic.name.endswith(suffix) and below:
        if below != now.base:
            steps.append(f"remap {now.image} to {below}")
    else:  # compressed images under a name that image_transport would not give them
        steps.append(f"remap {now.base}{suffix} to {topic.name}")
    if topic.kind != now.kind:
        steps.append(f"set the parameter image_transport to {NAMES[topic.kind]}")
    return " and ".join(steps) or f"leave out the remapping of {now.base}{suffix}"


def advice(topics: Sequence[Topic], now: Subscription) -> str:
    """What to do where nobody publishes what the node listens to, and ``topics`` are there."""
    found = sorted(usable(topics), key=lambda topic: _distance(topic, now))
    if found:
        text = f"{way_to(found[0], now)}, where {found[0].kind} comes, or start the camera"
        if len(found) > 1:
            names = ", ".join(topic.name for topic in found[1 : NAMED + 1])
            more = " and others" if len(found) > NAMED + 1 else ""
            text += f"; there are also {names}{more}"
        return text
    if foreign := [topic for topic in topics if transport_of(topic)]:
        name, kind = foreign[0].name, transport_of(foreign[0])
        if kind == "compressedDepth":
            return f"{name} alone is there, which is depth; start the camera's colour images"
        return (
            f"{name} alone is there, and this node does not read {kind}; let the camera send raw "
            f"images, or convert them with image_transport's republish"
        )
    if infos := [topic.name for topic in topics if topic.kind == CAMERA_INFO]:
        return (
            f"{infos[0]} alone is there: the camera's images are switched off in its driver, or "
            "were not recorded; switch them on, or play a bag that has them"
        )
    return (
        "no other topic has images; start the camera, or, if it runs, give it and this node the "
        "same ROS_DOMAIN_ID"
    )


def _distance(topic: Topic, now: Subscription) -> tuple[float, bool, str]:
    """Topics in the order in which they are likely to be meant."""
    below = topic.name.removesuffix(SUFFIXES[topic.kind])
    # A name that was remapped to its own compressed topic is meant as that.
    base = now.base.removesuffix(SUFFIXES[topic.kind])
    alike = difflib.SequenceMatcher(None, base, below).ratio()
    return (-alike, topic.kind != now.kind, topic.name)
