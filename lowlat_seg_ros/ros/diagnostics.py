"""What ``/diagnostics`` says of the node's lifecycle and of each camera stream.

Key names follow Autoware's newest style (processing_time_ms, output_latency_ms, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cpu_threads import frame_priority
from lowlat_seg_ros.engine.schedule import LEVELS
from lowlat_seg_ros.engine.slow_track import SlowTrackState
from lowlat_seg_ros.engine.timing import FrameCost, Percentiles
from lowlat_seg_ros.frames import Counters, Deadline, Ledger
from lowlat_seg_ros.ros.doctor import BUSY_SHARE, Finding, Severity
from lowlat_seg_ros.ros.monitor import MISSED, Rates, examine_pace, patience_ms
from lowlat_seg_ros.ros.outputs import MESSAGES
from lowlat_seg_ros.ros.params import NodeConfig, Settings
from lowlat_seg_ros.ros.plausibility import END
from lowlat_seg_ros.ros.stream_state import SLOW, StreamState

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

Values = dict[str, float | int | str | bool]


def diagnostics(
    node_name: str, device: str, now_ns: int, statuses: list[DiagnosticStatus]
) -> DiagnosticArray:
    """One message with all of the node's states, stamped ``now_ns`` of the node's clock."""
    array = DiagnosticArray()
    array.header.stamp = MESSAGES.time(now_ns)
    array.status = statuses
    for status in statuses:
        status.name = f"{node_name}: {status.name}"
        status.hardware_id = device
    return array


def camera_statuses(stream: StreamState, settings: Settings) -> list[DiagnosticStatus]:
    times, rates, counters = stream.times, stream.rates, stream.counters
    camera = camera_status(stream, settings.node)
    # While no image comes the status of the camera says why: one cause, one error.
    comes = times.since_image_ms is not None and not _stale(stream, settings.node)
    findings = [*(stream.findings if comes else ()), *stream.output_findings]
    statuses = [
        camera,
        images_status(stream),
        processing_status(stream, settings.node, frame_priority(settings.engine)),
        deadline_status(times.deadline, counters, settings.engine.max_latency_ms),
        accuracy_status(stream.expected_accuracy, settings.node),
        slow_track_status(stream.slow_track, counters, settings.node),
        key_frames_status(counters, stream.threshold, settings.engine),
        ledger_status(stream.ledger, rates, settings.node, stream.complaint),
        connections_status(findings, comes=comes),
    ]
    for status in statuses:
        status.name = f"{stream.camera}: {status.name}" if stream.camera else status.name
    return statuses


def lifecycle_status(
    state: str, problem: str, budget: FrameCost | None = None, cameras: int = 1
) -> DiagnosticStatus:
    """The node's state, and while it is configured what frames were measured to cost."""
    values: Values = {"state": state}
    if budget is not None:
        values |= {f"budget_{name}": value for name, value in vars(budget).items()}
        values |= {"budget_rate_hz": budget.rate_hz(cameras), "cameras": cameras}
    if problem:
        return _status("lifecycle", ERROR, problem, values)
    return _status("lifecycle", OK, f"the node is {state}", values)


def camera_status(stream: StreamState, config: NodeConfig) -> DiagnosticStatus:
    values: Values = {"topic": stream.topic, "publishers": stream.publishers}
    why = "".join(f": {found.text}" for found in stream.findings[:1])
    why += "".join(f"; {found.text}" for found in stream.findings[1:])
    since_ms, age_ms = stream.times.since_image_ms, stream.times.image_age_ms
    if since_ms is None or age_ms is None:
        values["state"] = "waiting"
        hopeless = any(finding.severity is Severity.ERROR for finding in stream.findings)
        level = ERROR if hopeless else WARN
        return _status("camera", level, f"no image yet on {stream.topic}{why}", values)
    stale, timeout_ms, period_ms = (
        _stale(stream, config), config.camera_timeout_ms, stream.times.period_ms,
    )  # fmt: skip
    # A node that is busy, not the camera, may be what is slow.
    slow = 0 < SLOW * timeout_ms < period_ms and stream.rates.busy_share < BUSY_SHARE
    values |= {
        "state": "stale" if stale else "slow" if slow else "active",
        "image_age_ms": age_ms,
        "time_since_last_image_ms": since_ms,
    }
    if stale:
        return _status("camera", ERROR, f"no image for {since_ms:.0f} ms{why}", values)
    if slow:
        value = math.ceil(MISSED * period_ms / 100) * 100
        fix = f"if it is meant to be so slow, set it to {value:.1f}"
        text = (
            f"an image comes every {period_ms / 1e3:.1f} s, more rarely than "
            f"advanced.camera_timeout_ms, {timeout_ms:g}, allows for"
        )
        return _status("camera", WARN, f"{text}; {fix}", values)
    return _status("camera", OK, "images come in", values)


def _stale(stream: StreamState, config: NodeConfig) -> bool:
    """Whether images came, and come no more."""
    since_ms = stream.times.since_image_ms
    patience = patience_ms(config.camera_timeout_ms, stream.times.period_ms)
    return since_ms is not None and 0 < patience < since_ms - stream.working_ms


def images_status(stream: StreamState) -> DiagnosticStatus:
    """Whether images and stamps can be true, show something, and are of one stream."""
    contents, resets = stream.contents, stream.resets
    values: Values = {
        "stamp_skew_ms": stream.times.stamps.skew_ms,
        "brightness": contents.brightness,
        "contrast": contents.contrast,
        "unchanged_images": contents.unchanged,
        "uniform_share": contents.own,
        "reset_share": resets.share,
    }
    values |= {f"recent_resets_{reason.value}": n for reason, n in resets.by_reason.items()}
    well = "images and their stamps are plausible"
    if contents.own >= END:
        well += f"; {contents.own:.0%} of their rows or columns have had one colour for long"
    return _found("images", stream.image_findings, well, values)


def processing_status(
    stream: StreamState, config: NodeConfig, priority: str = EngineConfig.foreground_priority
) -> DiagnosticStatus:
    """Whether masks go out in time, and as fast as images come; ``priority``: that of frames."""
    times, rates, pace = stream.times, stream.rates, stream.pace
    timing, stages = times.timing, times.stages
    network_ms = stages.lower_ms + stages.higher_ms + stages.predictor_ms
    values: Values = {
        "processing_time_ms": timing.processing_ms,
        "preprocess_time_ms": timing.convert_ms + stages.preprocess_ms,
        "inference_time_ms": network_ms + stages.propagation_ms + stages.fusion_ms,
        "postprocess_time_ms": stages.postprocess_ms + timing.publish_ms,
        "output_latency_ms": timing.age_ms,
        "consecutive_processing_delay_ms": times.delayed_ms,
        "input_rate_hz": rates.input_hz,
        "output_rate_hz": rates.output_hz,
        "frame_takes_ms": pace.takes_ms,
        "camera_period_ms": pace.period_ms,
        "load": stream.load,
        "frame_priority": priority,
    }
    if times.since_publish_ms is not None:
        values["time_since_last_publish_ms"] = times.since_publish_ms
    values |= _percentiles("processing_time", times.processing_ms)
    values |= _percentiles("output_latency", times.age_ms)
    if 0 < config.max_consecutive_delay_ms < stream.working_ms:
        text = f"a frame has been worked on for {stream.working_ms:.0f} ms, and all others wait"
        fix = "it is the first of a stream, for which Sh runs first, or the device hangs"
        return _status("processing", ERROR, f"{text}; {fix}: restart the node if it stays", values)
    if 0 < config.max_consecutive_delay_ms < times.delayed_ms:
        text = f"every frame has been late for {times.delayed_ms:.0f} ms"
        return _status("processing", ERROR, text, values)
    if times.delayed_ms > 0:
        text = f"the newest frame took {timing.processing_ms:.0f} ms"
        return _status("processing", WARN, text, values)
    return _found("processing", examine_pace(pace, stream.load), "masks go out in time", values)


def deadline_status(newest: Deadline, counters: Counters, limit_ms: float) -> DiagnosticStatus:
    """Whether masks come before ``max_latency_ms``, and what load is shed so that they do."""
    level, most = newest.level, len(LEVELS) - 1
    values: Values = {
        "max_latency_ms": limit_ms,
        "deadline_latency_ms": newest.latency_ms,
        "deadline_missed": newest.missed,
        "missed": counters.missed,
        "shed_level": level,
        "shed": counters.shed,
    }
    if limit_ms <= 0:
        return _status("deadline", OK, "no deadline is set", values)
    if level > 0:
        took = f"the newest mask came after {newest.latency_ms:.0f} ms of {limit_ms:g}"
        text = f"load is shed, level {level} of {most}: {LEVELS[level].doc}; {took}"
        if level == most and newest.missed:
            fix = "set a smaller inference_height or a larger max_latency_ms"
            return _status("deadline", ERROR, f"{text}; {fix}", values)
        return _status("deadline", WARN, text, values)
    return _status("deadline", OK, LEVELS[level].doc, values)


def accuracy_status(expected: float, config: NodeConfig) -> DiagnosticStatus:
    """Whether masks are probably right; ``expected``: share of their pixels that are."""
    values: Values = {"expected_accuracy": expected}
    if math.isnan(expected):
        text = "not known: the checkpoint has no model of it (lowlat-seg calibrate), or no mask yet"
        return _status("accuracy", OK, text, values)
    text = f"about {expected:.0%} of a mask's pixels are probably right"
    fix = "do not rely on masks; look at the lens, the exposure and the scene"
    if expected < config.error_expected_accuracy:
        return _status("accuracy", ERROR, f"{text}; {fix}", values)
    if expected < config.warn_expected_accuracy:
        return _status("accuracy", WARN, f"{text}; {fix}", values)
    return _status("accuracy", OK, text, values)


def slow_track_status(
    state: SlowTrackState, counters: Counters, config: NodeConfig
) -> DiagnosticStatus:
    values: Values = {f"slow_track_{name}": v for name, v in vars(state).items()}
    values |= vars(counters)
    level, text = OK, "the slow track works"
    if 0 < config.max_refinement_ms < state.running_ms:
        took = f"Sh has been at work on one key frame for {state.running_ms:.0f} ms"
        fix = "set a larger advanced.slow_track_min_share or advanced.slow_track_threads"
        hangs = "masks go on, but restart the node where this time only grows: then Sh hangs"
        level, text = WARN, f"{took}; {fix}; {hangs}"
    if state.last_error:
        going_on = "masks go on without its exact features, and it is tried again"
        level, text = WARN, f"{state.last_error}; {going_on}"
    if not state.alive:
        going_on = "masks go on without new exact features"
        level, text = ERROR, f"the slow track has ended; {going_on}; restart the node"
    return _status("slow track", level, text, values)


def key_frames_status(
    counters: Counters, threshold: float, config: EngineConfig
) -> DiagnosticStatus:
    """How often frames become the key frame, and at which threshold."""
    values: Values = {
        "key_frame_share": counters.key_frames / max(counters.frames, 1),
        "key_frame_policy": config.key_frame_policy,
        "threshold": threshold,
        "key_frame_budget": config.key_frame_budget,
    }
    if config.key_frame_budget > 0:
        text = "the threshold is steered to the budget"
    elif config.key_frame_policy == "when_free":
        text = "whenever Sh is idle"
    else:
        text = "above a fixed threshold"
    return _status("key frames", OK, text, values)


def ledger_status(
    ledger: Ledger, rates: Rates, config: NodeConfig, complaint: str = ""
) -> DiagnosticStatus:
    """Whether every image gave a mask; ``complaint``: why the newest one that did not has none."""
    level, text = OK, "every image is accounted for"
    if rates.refused:
        text = f"{rates.refused} images since the last message gave no mask: {complaint}"
        level = ERROR if rates.refused > config.max_refused_share * rates.received else WARN
    return _status("ledger", level, text, {**vars(ledger)})


def connections_status(findings: Sequence[Finding], *, comes: bool = True) -> DiagnosticStatus:
    """What the QoS doctor says of both ends of the topics; ``comes``: images do."""
    well = "every topic's ends fit" if comes else "no image comes, see the status camera"
    return _found("connections", findings, well, {"findings": len(findings)})


def _found(name: str, findings: Sequence[Finding], well: str, values: Values) -> DiagnosticStatus:
    """All of ``findings`` at the level of the worst; ``well`` is said where there is none."""
    level = max((finding.severity for finding in findings), default=Severity.OK)
    text = "; ".join(finding.text for finding in findings) or well
    return _status(name, bytes([level]), text, values)


def _percentiles(name: str, values: Percentiles) -> Values:
    return {
        f"{name}_p50_ms": values.p50,
        f"{name}_p95_ms": values.p95,
        f"{name}_p99_ms": values.p99,
        f"{name}_max_ms": values.max,
    }


def _status(name: str, level: bytes, text: str, values: Values) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    return DiagnosticStatus(name=name, level=level, message=text, values=pairs)


def _text(value: float | int | str | bool) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
