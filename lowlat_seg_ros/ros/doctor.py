"""The QoS doctor: why a camera's images do not come or go missing, and what fixes it.

Everything here is a function of what :mod:`connections` has seen; nothing knows the middleware.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

#: A node busier than this share of the time supersedes images itself, as it is meant to.
BUSY_SHARE = 0.5

COMPRESSED = "sensor_msgs/msg/CompressedImage"
RAW = "sensor_msgs/msg/Image"

_PROFILE = "config/fastdds_large_images.xml of lowlat_seg_ros"


class Severity(IntEnum):
    """As the levels of ``diagnostic_msgs/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """A sentence that says what is wrong and what fixes it."""

    severity: Severity
    text: str


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
    kind: str  # type of message that the node asks for
    ends: tuple[End, ...] = ()
    others: tuple[str, ...] = ()  # other topics of that type
    begun: bool = False  # an image has come
    silent_ms: float = 0.0  # since the newest image, or since the start before the first
    timeout_ms: float = 0.0  # how long that may be, 0 for ever
    lost: int = 0  # images that the middleware said it lost
    missing: int = 0  # images that the publisher's sequence numbers lack
    received: int = 0
    busy_share: float = 0.0  # of the time, in which frames were segmented
    profile: bool | None = None  # there is a Fast DDS profile; None for other middleware
    clock_waits: bool = False  # use_sim_time is set and /clock has not begun


@dataclass(frozen=True)
class Output:
    """A topic of the node, and the subscribers on it."""

    topic: str
    kind: str
    ends: tuple[End, ...] = ()


def examine_input(state: Input, max_lost_share: float) -> list[Finding]:
    """What is wrong with a camera's topic, the worst first; empty if nothing is.

    ``max_lost_share``: of the images, may go missing on their way to a node that has time for them.
    """
    overdue = 0 < state.timeout_ms < state.silent_ms
    silence = Severity.ERROR if overdue else Severity.WARN
    fitting = [end for end in state.ends if end.kind == state.kind and not end.policy]
    severity = Severity.WARN if fitting else Severity.ERROR
    misfits = [_misfit(state, end) for end in state.ends if end not in fitting]
    findings = [Finding(severity, text) for text in misfits]
    if not state.ends:
        findings.append(Finding(silence, _nobody(state)))
    elif fitting and (overdue or not state.begun):
        findings.append(Finding(silence, _silence(state, len(fitting))))
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


def fix(topic: str, side: str, policy: str) -> str:
    """How to make the ``side`` (publisher or subscription) of ``topic`` fit in a policy."""
    value = {
        ("subscription", "reliability"): "best_effort",
        ("subscription", "durability"): "volatile",
        ("publisher", "reliability"): "reliable",
        ("publisher", "durability"): "transient_local",
    }.get((side, policy))
    if value is None:
        return f"give both ends the same {policy}"
    return f"set the parameter qos_overrides.{topic}.{side}.{policy} to {value}"


def _misfit(state: Input, end: End) -> str:
    transport = {COMPRESSED: "compressed", RAW: "raw"}.get(end.kind)
    if end.kind != state.kind:
        way = "remap image to a camera's topic"
        if transport:
            way = f"set the parameter image_transport to {transport}, and remap image accordingly"
        return f"{end.node} sends {end.kind} on {state.topic}, not {state.kind}; {way}"
    return (
        f"{end.node} offers less {end.policy} on {state.topic} than this node asks for, so none of "
        f"its images comes; {fix(state.topic, 'subscription', end.policy)}"
    )


def _nobody(state: Input) -> str:
    if not state.others:
        return f"nobody publishes {state.topic}, or any other {state.kind}; start the camera"
    topics = ", ".join(state.others)
    return f"nobody publishes {state.topic}; start the camera, or remap image to one of: {topics}"


def _silence(state: Input, publishers: int) -> str:
    if state.clock_waits:
        return (
            f"no image on {state.topic}, and no time on /clock though use_sim_time is true; play "
            "the bag with --clock, start the simulation, or set use_sim_time to false"
        )
    who = "a publisher" if publishers == 1 else f"{publishers} publishers"
    so_far = f"came for {state.silent_ms:.0f} ms" if state.begun else "has come yet"
    return (
        f"{who} of {state.topic} fit, but no image {so_far}; see whether the camera sends (ros2 "
        f"topic hz {state.topic}), and if it does, {_room(state)}"
    )


def _room(state: Input) -> str:
    """What to do about images that are lost on their way."""
    if state.profile is None:
        return "give the middleware larger receive buffers"
    if state.profile:
        return f"start the camera with {_PROFILE} as well (FASTRTPS_DEFAULT_PROFILES_FILE)"
    return f"set FASTRTPS_DEFAULT_PROFILES_FILE to {_PROFILE} for this node and for the camera"
