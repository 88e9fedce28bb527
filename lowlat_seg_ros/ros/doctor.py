"""The QoS doctor: why a camera's images do not come or go missing, and what fixes it.

Everything here is a function of what :mod:`.connections` has seen, topics as the graph names them;
nothing knows the middleware.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from lowlat_seg_ros.messages import IMAGE, TRANSPORTS
from lowlat_seg_ros.ros.start import DISCOVERY_RANGE, LOCALHOST_ONLY, PROFILE_VARIABLES

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

#: A node busier than this share of the time supersedes images itself, as it is meant to.
BUSY_SHARE = 0.5

#: Bytes of an image that fit in one datagram: smaller ones do not need large receive buffers.
DATAGRAM = 65_000


class Severity(IntEnum):
    """As the levels of ``diagnostic_msgs/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """A sentence that says what is wrong and what fixes it.

    ``kind`` stays the same while the sentence's figures change; empty for what is not logged.
    """

    severity: Severity
    text: str
    kind: str = ""


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


@dataclass(frozen=True)
class End:
    """The other end of a topic: the node it belongs to, its type, and the policy (such as
    ``reliability``) in which the two ends do not fit; empty if they do.
    """

    node: str
    kind: str
    policy: str = ""


@dataclass(frozen=True)
class Input:
    """A camera's topic at one moment; counts are since the last look."""

    topic: str
    listens: Subscription
    ends: tuple[End, ...] = ()
    there: tuple[Topic, ...] = ()  # others on which images may come, if none can on this one
    begun: bool = False  # an image has come
    silent_ms: float = 0.0  # since the newest image, or since the start before the first
    timeout_ms: float = 0.0  # how long that may be, 0 for ever
    lost: int = 0  # images that the middleware said it lost
    missing: int = 0  # images that the publisher's sequence numbers lack
    received: int = 0
    busy_share: float = 0.0  # of the time, in which frames were segmented
    image_bytes: int = 0  # of the newest image's message, 0 before the first
    profile: bool | None = None  # there is a Fast DDS profile; None for other middleware
    profile_replaced: bool = False  # by the discovery range
    profile_file: str = "config/fastdds_large_images.xml"  # the one that helps
    clock_waits: bool = False  # use_sim_time is set and /clock has not begun

    @property
    def fitting(self) -> list[End]:
        """The publishers whose images can come."""
        return [end for end in self.ends if end.kind == self.listens.kind and not end.policy]


@dataclass(frozen=True)
class Output:
    topic: str
    kind: str
    ends: tuple[End, ...] = ()


def examine_input(state: Input, max_lost_share: float) -> list[Finding]:
    """What is wrong with a camera's topic, the worst first; empty if nothing is.

    ``max_lost_share``: of the images, may go missing on their way to a node that has time for them.
    """
    overdue = 0 < state.timeout_ms < state.silent_ms
    silence = Severity.ERROR if overdue else Severity.WARN
    fitting = state.fitting
    severity = Severity.WARN if fitting else Severity.ERROR
    misfits = [_misfit(state, end) for end in state.ends if end not in fitting]
    findings = [Finding(severity, text) for text in dict.fromkeys(misfits)]
    if not state.ends:
        findings.append(Finding(silence, _nobody(state)))
    elif fitting and (overdue or not state.begun):
        findings.append(Finding(silence, _silence(state, len(fitting))))
    if len(fitting) > 1:
        findings.append(Finding(Severity.WARN, _crowd(state.topic, fitting)))
    sent = state.missing + state.received
    if state.lost:
        text = f"the middleware lost {state.lost} images on {state.topic}; {_room(state)}"
        findings.append(Finding(Severity.WARN, text))
    elif state.busy_share < BUSY_SHARE and state.missing > max_lost_share * sent:
        text = (
            f"{state.missing} of {sent} images on {state.topic} never came, though this node had "
            f"time for them; {_room(state)}"
        )
        findings.append(Finding(Severity.WARN, text))
    return sorted(findings, key=lambda finding: -finding.severity)


def examine_output(state: Output) -> list[Finding]:
    """Who subscribes to one of the node's topics and receives nothing, and what fixes it."""
    return [
        Finding(
            Severity.WARN,
            f"{end.node} asks for more {end.policy} on {state.topic} than this node offers, so it "
            f"receives nothing; {fix(state.topic, 'publisher', end.policy)}",
        )
        for end in state.ends
        if end.policy
    ]


def examine_makers(topic: str, makers: Sequence[End]) -> list[Finding]:
    """Who publishes on ``topic``, which is for this node's masks alone: a node of the same name is
    there where somebody started it twice."""
    if len(makers) < 2:
        return []
    text = (
        f"{len(makers)} publishers send masks on {topic}, {names(makers)}, so that who subscribes "
        "gets those of each in turn; end all but one, or give each a namespace or name of its own "
        "(one that was killed is listed for some 20 s)"
    )
    return [Finding(Severity.WARN, text)]


def fix(topic: str, side: str, policy: str) -> str:
    """How to make the ``side`` (publisher or subscription) of ``topic`` fit in a policy.

    The node's own deadline and liveliness are no parameters, so it is the other end that changes.
    """
    value = {
        ("subscription", "reliability"): "best_effort",
        ("subscription", "durability"): "volatile",
        ("publisher", "reliability"): "reliable",
        ("publisher", "durability"): "transient_local",
    }.get((side, policy))
    if policy == "liveliness":
        return "let both ends have automatic liveliness without a lease duration"
    if value is None and side == "publisher":
        return f"let the subscriber ask for no {policy}"
    if value is None:
        return f"give both ends the same {policy}"
    return _override(topic, side, policy, value)


def _override(topic: str, side: str, policy: str, value: object) -> str:
    """Such parameters are read-only while the node runs, so ``ros2 param set`` is no way."""
    return f"start this node with -p qos_overrides.{topic}.{side}.{policy}:={value}"


def names(ends: Sequence[End]) -> str:
    counted = Counter(end.node for end in ends)
    return ", ".join(f"{node} ({n})" if n > 1 else node for node, n in sorted(counted.items()))


def _misfit(state: Input, end: End) -> str:
    if end.kind != state.listens.kind:
        topic = Topic(state.topic, end.kind)
        way = advice(state.there, state.listens)
        if usable([topic]):
            way = way_to(topic, state.listens)
        return f"{end.node} sends {end.kind} on {state.topic}, not {state.listens.kind}; {way}"
    return (
        f"{end.node} offers less {end.policy} on {state.topic} than this node asks for, so none of "
        f"its images comes; {fix(state.topic, 'subscription', end.policy)}"
    )


def _nobody(state: Input) -> str:
    clock = ""
    if state.clock_waits:
        clock = ", and no time comes on /clock though use_sim_time is true (play bags with --clock)"
    return f"nobody publishes {state.topic}{clock}; {advice(state.there, state.listens)}"


def _crowd(topic: str, ends: Sequence[End]) -> str:
    return (
        f"{len(ends)} publishers send images on {topic}, {names(ends)}, which are taken for one "
        "camera's; stop all but one, or give each a topic of its own (parameter cameras)"
    )


def _silence(state: Input, publishers: int) -> str:
    if state.clock_waits:
        return (
            f"no image on {state.topic}, and no time on /clock though use_sim_time is true; play "
            "the bag with --clock, start the simulation, or set use_sim_time to false"
        )
    who = "a publisher" if publishers == 1 else f"{publishers} publishers"
    so_far = f"came for {state.silent_ms:.0f} ms" if state.begun else "has come yet"
    text = (
        f"{who} of {state.topic} fit, but no image {so_far}; see whether the camera sends (ros2 "
        f"topic hz {state.topic})"
    )
    if not state.begun:
        return f"{text}, and if it does and its images are large, {_room(state)}"
    return f"{text}, and if it does, {_room(state)}" if state.image_bytes > DATAGRAM else text


def _room(state: Input) -> str:
    if 0 < state.image_bytes <= DATAGRAM:
        depth = _override(state.topic, "subscription", "depth", 5)
        return f"{depth}, and see whether the network loses packets"
    variables = " and ".join(PROFILE_VARIABLES)
    if state.profile is None:
        return "give the middleware larger receive buffers"
    if state.profile_replaced:
        return (
            f"unset {LOCALHOST_ONLY}, set {DISCOVERY_RANGE} to SYSTEM_DEFAULT and {variables} to "
            f"{state.profile_file}, for this node and for the camera: discovery on this machine "
            "alone replaces a profile's shared memory by 0.5 MB"
        )
    if state.profile:
        return f"start the camera with {state.profile_file} as well ({variables})"
    return f"set {variables} to {state.profile_file} for this node and for the camera"


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
        first = found[0]
        text = f"{way_to(first, now)}, as {first.kind} comes on {first.name}, or start the camera"
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
