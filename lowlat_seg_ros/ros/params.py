"""ROS parameters from the settings records: declared, described, ranged, refused when wrong."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSReliabilityPolicy

from lowlat_seg_ros.config import (
    ConfigError,
    EngineConfig,
    Rule,
    SettingError,
    check,
    setting,
)
from lowlat_seg_ros.images import SAMPLE_BITS
from lowlat_seg_ros.messages import TRANSPORTS

Record = TypeVar("Record")

#: What a part of a topic's name may be.
_CAMERA = re.compile("[A-Za-z_][A-Za-z0-9_]*")

#: What overrides of a topic's quality of service may be, by the last part of their names.
_POLICIES = {
    "reliability": QoSReliabilityPolicy,
    "durability": QoSDurabilityPolicy,
    "history": QoSHistoryPolicy,
}


@dataclass(frozen=True)
class NodeConfig:
    autostart: bool = setting(
        True,
        "whether the node configures and activates itself when it starts; false to leave that to "
        "a lifecycle manager",
        Rule(top_level=True),
    )
    checkpoint: str = setting(
        "",
        "safetensors file written by 'lowlat-seg train', ~ for the home folder; empty for the "
        "weights of the package",
        Rule(top_level=True),
    )
    checkpoint_sha256: str = setting(
        "",
        "SHA-256 that the checkpoint must have, 64 hex digits; empty for what the file "
        "<checkpoint>.sha256 says, as there is one for the weights of the package",
    )
    device: str = setting(
        "auto", "where the network runs: auto, cpu, cuda or cuda:N", Rule(top_level=True)
    )
    expected_width: int = setting(
        640,
        "width of the images to come, at which the network is warmed up before the node subscribes "
        "to the camera; other sizes work too, but their first frame may take longer",
        Rule(unit="px", low=8, high=16384),
    )
    expected_height: int = setting(
        480, "height of the images to come", Rule(unit="px", low=8, high=16384)
    )
    expected_rate_hz: float = setting(
        15.0,
        "images per second of a camera; the cost of a frame is measured at this rate when the "
        "node is configured",
        Rule(unit="Hz", low=0.1, high=10_000.0),
    )
    cameras: tuple[str, ...] = setting(
        (),
        "names of the cameras, each with its image on <name>/image and its masks on ~/<name>/mask; "
        "empty ([''] in a file) for one camera on the topics 'image' and ~/mask",
        Rule(top_level=True),
    )
    image_transport: str = setting(
        "raw",
        "how images come: raw, sensor_msgs/Image on the topic 'image'; compressed, JPEG or PNG in "
        "sensor_msgs/CompressedImage on 'image/compressed'; or H.264 or H.265 of image_transport's "
        "plugins: foxglove, foxglove_msgs/CompressedVideo on 'image/foxglove', or ffmpeg, "
        "ffmpeg_image_transport_msgs/FFMPEGPacket on 'image/ffmpeg'",
        Rule(choices=tuple(TRANSPORTS), top_level=True),
    )
    output_size: str = setting(
        "input",
        "size of masks and pictures: the input's, or the network's (see inference_height); the "
        "CameraInfo on ~/camera_info fits it",
        Rule(choices=("input", "network"), top_level=True),
    )
    bits_per_sample: int = setting(
        0,
        "bits in use in each value of 16-bit encodings, such as 12 of mono16; 0 for all 16",
        Rule(unit="bits", choices=(0, *SAMPLE_BITS), dynamic=True),
    )
    class_remap: tuple[str, ...] = setting(
        (),
        "other ids for classes in masks, as 'name:id', such as ['Road:1', 'Sky:255'] with 255 for "
        "unlabelled; empty ([''] in a file) for the ids in the checkpoint; colours and "
        "~/label_info follow, and classes without an entry keep their id",
    )
    overlay_alpha: float = setting(
        0.5, "opacity of the class colours in ~/overlay", Rule(low=0.0, high=1.0, dynamic=True)
    )
    overlay_legend: bool = setting(
        True,
        "whether ~/overlay has the classes' names in a corner, if they fit",
        Rule(dynamic=True),
    )
    diagnostics_period_s: float = setting(
        1.0, "time between two messages on /diagnostics", Rule(unit="s", low=0.05, high=3600.0)
    )
    max_processing_time_ms: float = setting(
        200.0,
        "diagnostics warn when a frame takes longer from image message to mask; 0 for never",
        Rule(unit="ms", low=0.0, high=3.6e6, dynamic=True),
    )
    max_consecutive_delay_ms: float = setting(
        2000.0,
        "diagnostics report an error when all frames for this long took longer than "
        "max_processing_time_ms, or when one frame has not ended after this time; 0 for never",
        Rule(unit="ms", low=0.0, high=3.6e6, dynamic=True),
    )
    camera_timeout_ms: float = setting(
        1000.0,
        "diagnostics report an error when no image has come for this long, and for 3 of the "
        "camera's own periods; 0 for never",
        Rule(unit="ms", low=0.0, high=3.6e6, dynamic=True),
    )
    max_lost_share: float = setting(
        0.1,
        "diagnostics warn when a larger share of the images was lost on the way although the node "
        "had time for them; 1 for never",
        Rule(low=0.0, high=1.0, dynamic=True),
    )
    max_refused_share: float = setting(
        0.5,
        "diagnostics report an error when a larger share of the images gave no mask, and a warning "
        "when any did; 1 for the warning alone",
        Rule(low=0.0, high=1.0, dynamic=True),
    )
    max_refinement_ms: float = setting(
        3_000.0,
        "diagnostics warn when the slow track (Sh) has been at work on one key frame for longer; 0 "
        "for never",
        Rule(unit="ms", low=0.0, high=3.6e6, dynamic=True),
    )
    warn_expected_accuracy: float = setting(
        0.8,
        "diagnostics warn when a smaller share of a mask's pixels is probably right "
        "(FrameReport's expected_accuracy); 0 for never",
        Rule(low=0.0, high=1.0, dynamic=True),
    )
    error_expected_accuracy: float = setting(
        0.6,
        "diagnostics report an error when a smaller share of a mask's pixels is probably right; 0 "
        "for never",
        Rule(low=0.0, high=1.0, dynamic=True),
    )
    log_throttle_s: float = setting(
        5.0,
        "shortest time between two errors of one kind in the log",
        Rule(unit="s", low=0.0, high=3600.0, dynamic=True),
    )

    def __post_init__(self) -> None:
        check(self)
        for name in self.cameras:
            if not _CAMERA.fullmatch(name) or self.cameras.count(name) > 1:
                raise SettingError(
                    "cameras",
                    f"is {', '.join(self.cameras)}; give each camera a name of its own of letters, "
                    f"digits and _, not beginning with a digit, unlike {name!r}",
                )


@dataclass(frozen=True)
class Settings:
    """All that is in force at one moment; swapped whole."""

    node: NodeConfig
    engine: EngineConfig


_SETTINGS = (*dataclasses.fields(NodeConfig), *dataclasses.fields(EngineConfig))

#: The parameter of each setting.
NAMES = {
    item.name: item.name if item.metadata["rule"].top_level else f"advanced.{item.name}"
    for item in _SETTINGS
}

#: What each parameter is unless somebody sets it.
_DEFAULTS = {NAMES[item.name]: item.default for item in _SETTINGS}


def as_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` by the names of parameters where they are by the names of settings."""
    return {NAMES.get(name, name): value for name, value in values.items()}


def moved(names: Iterable[str]) -> str:
    """Where parameters are now which ``names`` calls by their old names; empty for none."""
    old = (name for name in names if NAMES.get(name, name) != name)
    return "; ".join(f"{name} is now {NAMES[name]}" for name in old)


class SettingsParameters:
    """Owner of the node's parameters and of the settings that follow from them.

    While ``fixed`` is set, as it is from configure to cleanup, only dynamic ones may change.
    """

    def __init__(self, node: Node) -> None:
        """Declare all; raises ``ConfigError`` and rclpy's parameter exceptions for wrong values."""
        self.fixed = False
        # What the node was given from outside; rclpy has no public way to ask for it.
        overrides: dict[str, Parameter] = getattr(node, "_parameter_overrides", {})
        self._given: list[str] = sorted(overrides)
        if where := moved(self._given):
            raise ConfigError(where)
        for name in self._given:
            _check_override(name, overrides[name].value)
        self._node = node
        self._current = Settings(_declare(node, NodeConfig), _declare(node, EngineConfig))
        node.add_on_set_parameters_callback(self._accept)
        node.add_post_set_parameters_callback(self._apply)

    @property
    def current(self) -> Settings:
        """What is in force; read once a frame."""
        return self._current

    def unknown(self) -> list[str]:
        """Parameters given from outside that the node does not have; rclpy ignores them.

        Each as a sentence naming the closest known one. Call it when all has been declared.
        """
        known = [*NAMES.values(), *(n for n in self._given if self._node.has_parameter(n))]
        sentences = []
        for name in sorted(set(self._given) - set(known)):
            # A typing error is found whether or not it is below ``advanced.``.
            close = difflib.get_close_matches(name, known, n=1)
            close += [NAMES[n] for n in difflib.get_close_matches(name, NAMES, n=1)]
            hint = f"; did you mean {close[0]}?" if close else ""
            sentences.append(f"there is no parameter {name}, so it is ignored{hint}")
        return sentences

    def _accept(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            new = self._with(parameters)
            if self.fixed:
                _check_dynamic(self._current.node, new.node)
                _check_dynamic(self._current.engine, new.engine)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Parameter]) -> None:
        self._current = self._with(parameters)

    def _with(self, parameters: list[Parameter]) -> Settings:
        values = {parameter.name: _value(parameter.value) for parameter in parameters}
        now = self._current
        return Settings(_replace(now.node, values), _replace(now.engine, values))


def descriptor(item: dataclasses.Field[Any]) -> ParameterDescriptor:
    """What ``ros2 param describe`` says of the setting ``item``."""
    doc, rule = item.metadata["doc"], item.metadata["rule"]
    text = f"{doc} [{rule.unit}]" if rule.unit else doc
    result = ParameterDescriptor(description=text)
    constraints = [f"one of {', '.join(map(str, rule.choices))}"] if rule.choices else []
    if not rule.dynamic:
        constraints.append("changes only while the node is unconfigured")
    result.additional_constraints = "; ".join(constraints)
    if rule.low is not None and isinstance(item.default, float):
        result.floating_point_range = [
            FloatingPointRange(from_value=float(rule.low), to_value=float(rule.high))
        ]
    elif rule.low is not None:
        result.integer_range = [
            IntegerRange(from_value=int(rule.low), to_value=int(rule.high), step=1)
        ]
    return result


def _check_override(name: str, value: Any) -> None:
    """ConfigError for what rclpy would ignore or end in a traceback for."""
    above = name.rpartition(".")[0]
    if isinstance(_DEFAULTS.get(above), tuple):
        # In YAML "Road: 1" is a name with a value of its own, and no text of a list.
        example = ["front", "left"] if above == "cameras" else ["Road:1", "Sky:255"]
        raise ConfigError(
            f"{above} has {name.rpartition('.')[2]!r} with a value of its own; write a list of "
            f"texts, each in quotes, such as {example}"
        )
    policy = name.rpartition(".")[2]
    if not name.startswith("qos_overrides."):
        return
    known = [one.name.lower() for one in _POLICIES.get(policy, ()) if one.name != "UNKNOWN"]
    if policy == "depth" and (type(value) is not int or value < 0):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from 0 on")
    if known and str(value).lower() not in known:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(known)}")


def wrong_type(name: str, value: Any) -> str:
    """A sentence for a parameter's ``value`` of another type than it has; empty if it has none."""
    default = _DEFAULTS.get(name)
    if isinstance(default, bool):
        rule = "true or false, without quotes"
    elif isinstance(default, float):
        rule = f"a number with a point, such as {default:.1f}"
        rule = f"{float(value)}, with a point" if type(value) is int else rule
    elif isinstance(default, int):
        rule = f"a whole number, such as {default}"
    elif isinstance(default, str):
        rule = "text, in quotes where YAML would make something else of it"
    elif isinstance(default, tuple):
        rule = "a list of texts in brackets, such as ['front', 'left']"
    else:
        return ""
    return f"{name} is {value!r}; write {rule}"


def _declare(node: Node, kind: type[Record]) -> Record:
    values = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        default = item.default
        if isinstance(default, tuple):  # ROS cannot tell the type of an empty list
            default = [*default] or [""]
        name = NAMES[item.name]
        try:
            declared = node.declare_parameter(name, default, descriptor(item))
        except InvalidParameterTypeException as error:
            given = getattr(node, "_parameter_overrides", {})[name].value
            raise ConfigError(wrong_type(name, given)) from error
        values[item.name] = _value(declared.value)
    return checked(lambda: kind(**values))


def _value(value: Any) -> Any:
    """A parameter's value as a setting's; an empty list comes as None."""
    if value is None or isinstance(value, list):
        return tuple(item for item in value or () if item)
    return value


def _replace(record: Record, values: dict[str, Any]) -> Record:
    """``record`` with those of ``values``, by the names of parameters, that it has."""
    names = [item.name for item in dataclasses.fields(record)]  # type: ignore[arg-type]
    mine = {name: values[NAMES[name]] for name in names if NAMES[name] in values}
    return checked(lambda: dataclasses.replace(record, **mine))  # type: ignore[type-var]


def checked(make: Callable[[], Record]) -> Record:
    """What ``make`` makes; ConfigError with the parameter's name for a value against the rules."""
    try:
        return make()
    except SettingError as error:
        raise ConfigError(f"{NAMES[error.setting]} {error.problem}") from error


def _check_dynamic(now: Any, new: Any) -> None:
    for item in dataclasses.fields(now):
        before, after = getattr(now, item.name), getattr(new, item.name)
        if before != after and not item.metadata["rule"].dynamic:
            raise ConfigError(
                f"{NAMES[item.name]} is {before!r} until the node is cleaned up, not "
                f"{after!r}; deactivate it and clean it up first (ros2 lifecycle set)"
            )
