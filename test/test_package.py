"""The package as a whole: one version, imports in one direction, pins and messages in step."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lowlat_seg_ros
from lowlat_seg_ros.frames import (
    Counters,
    Deadline,
    Ledger,
    MaskKind,
    Outcome,
    ResetReason,
    StageTiming,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lowlat_seg_ros"

# What each part may import of the package besides itself.
_CORE = ("config", "frames", "labels")
_LAB = (*_CORE, "lab.arguments")
_PIPELINE = ("images", "messages", "pipeline")
ALLOWED = {
    "config": set(),
    "frames": set(),
    "labels": {"config", "frames"},
    "images": set(),
    "messages": {"frames", "images"},
    "network": {"config", "frames"},
    "engine": {"config", "frames", "network"},
    # The one way of an image message, live and offline.
    "pipeline": {"frames", "images", "messages", "engine"},
    "lab.arguments": {"config"},
    "lab.data": {*_LAB},
    "lab.training": {*_LAB, "network", "lab.data", "lab.baselines", "lab.metrics"},
    "lab.baselines": {*_LAB, "network", "engine"},
    "lab.metrics": {"frames", "engine"},
    "lab.report": set(),
    "lab.quantize": {*_LAB, "network", "engine", "lab.data"},
    "lab.calibrate": {*_LAB, "network", "engine", "lab.data"},
    "lab.evaluation": {
        *_LAB,
        "network",
        "engine",
        "lab.baselines",
        "lab.data",
        "lab.quantize",
        "lab.metrics",
        "lab.report",
    },
    "lab.benchmark": {
        *_LAB,
        "network",
        "engine",
        "lab.baselines",
        "lab.evaluation",
        "lab.data",
        "lab.quantize",
        "lab.report",
    },
    # The node: nothing of the tools or the laboratory.
    "ros": {*_CORE, *_PIPELINE, "network", "engine", "msg"},  # msg is generated
    "tools": {*_CORE, *_PIPELINE, "network", "engine", "lab", "ros", "msg"},
}

_MODULE = re.compile(r"lowlat_seg_ros(\.\w+)+")

# Modules that are imported only where these packages are; triton comes with CUDA builds of torch.
NEEDS = {
    "network.propagation_triton": "triton",
}


def modules() -> list[str]:
    """Dotted names, without the package's own, of every module but the package itself."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.glob("*/**/*.py"))
    inner = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    return sorted(inner | {path.stem for path in PACKAGE.glob("[!_]*.py")})


def part_of(module: str) -> str:
    """The key of :data:`ALLOWED` for ``module``."""
    first, _, rest = module.partition(".")
    return f"{first}.{rest.split('.')[0]}" if first == "lab" and rest else first


def imports(module: str) -> Iterator[str]:
    """What ``module`` imports of the package, anywhere in its code, relative to the package."""
    path = PACKAGE / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import; write it in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and _MODULE.fullmatch(str(node.value)):
            names = [node.value]  # to be imported by its name
        else:
            continue
        own = (name.removeprefix("lowlat_seg_ros.") for name in names)
        yield from (name for name, full in zip(own, names, strict=True) if name != full)


def run(*arguments: str) -> str:
    """Standard output of this Python with ``arguments``, at the root of the repository."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_version_is_the_same_everywhere() -> None:
    xml = ElementTree.parse(ROOT / "package.xml").findtext("version")
    setup = run("setup.py", "--version")
    assert lowlat_seg_ros.__version__ == xml == setup.split()[-1]


def test_ros_packages_that_are_imported_are_declared() -> None:
    xml = ElementTree.parse(ROOT / "package.xml").getroot()
    declared = {item.text for kind in ("depend", "exec_depend") for item in xml.iter(kind)}
    ros = r"^ *(?:from|import) (rclpy|launch|launch_ros|ament_index_python|\w+(?=\.(?:msg|srv)\b))"
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    imported = {name for path in sources for name in re.findall(ros, path.read_text(), re.M)}
    assert {"rclpy", "launch", "sensor_msgs", "std_srvs"} <= imported  # they are found
    assert imported - {"lowlat_seg_ros"} <= declared


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        if (part := part_of(module)) != "lab"
        for name in imports(module)
        if name != "__version__"
        and part_of(name) != part
        and not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED[part])
    ]
    assert not wrong


def needs_ros(name: str) -> bool:
    """Whether the module ``name`` may import rclpy: the node, and tools that run it live."""
    live = ("tools.demo_run", "tools.end_to_end", "tools.live", "tools.bag.play")
    return name.split(".")[0] == "ros" or name in live


def test_core_needs_no_ros() -> None:
    core = [
        f"lowlat_seg_ros.{name}"
        for name in modules()
        if not needs_ros(name) and importlib.util.find_spec(NEEDS.get(name, "torch"))
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {core}: importlib.import_module(name)\n"
        "print('rclpy' in sys.modules)"
    )
    assert run("-c", code).strip() == "False"


def test_the_node_imports_neither_tools_nor_laboratory() -> None:
    pytest.importorskip("rclpy", reason="the node needs ROS 2")
    code = "import lowlat_seg_ros.ros.node, sys; print(*sys.modules)"
    loaded = {name for name in run("-c", code).split() if name.startswith("lowlat_seg_ros.")}
    assert "lowlat_seg_ros.engine.engine" in loaded
    assert not [name for name in loaded if name.split(".")[1] in ("lab", "tools")]


@pytest.mark.parametrize("kind", [StageTiming, Counters, Deadline, Ledger])
def test_message_mirrors_its_record(kind: type) -> None:
    text = (ROOT / "msg" / f"{kind.__name__}.msg").read_text()
    fields = re.findall(r"^(\w+) +(\w+)", text, re.MULTILINE)
    record = {item.name: str(item.type) for item in dataclasses.fields(kind)}
    types = {"float32": "float", "uint64": "int", "uint8": "int", "string": "str", "bool": "bool"}
    assert {field: types[kind] for kind, field in fields} == record


def test_kinds_of_frame_report_are_those_of_masks() -> None:
    text = (ROOT / "msg" / "FrameReport.msg").read_text()
    assert re.findall(r"^uint8 ([A-Z]+)=", text, re.MULTILINE) == [k.name for k in MaskKind]


def test_every_reason_and_outcome_has_its_counter() -> None:
    counters = {item.name for item in dataclasses.fields(Counters)}
    reasons = {name.removeprefix("resets_") for name in counters if name.startswith("resets_")}
    assert reasons == {r.value for r in ResetReason} - {"first_frame"}
    assert {outcome.value for outcome in Outcome} <= counters
    text = (ROOT / "msg" / "KeyFrameRefinement.msg").read_text()
    named = re.findall(r"^uint8 ([A-Z_]+)=", text, re.MULTILINE)
    assert named == [outcome.value.upper() for outcome in Outcome]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *(text for group in groups for text in group)]
    extras = project["project"]["optional-dependencies"]
    wanted += [*extras["fast"], *extras["test"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt pins no {requirement.name}; run make lock"
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_wheel_repair_names_this_python_and_can_be_repeated() -> None:
    repair = runpy.run_path(str(ROOT / "scripts" / "repair_ros_wheels.py"))["repair"]
    builder = "/opt/python/cp313-cp313t"
    broken = (
        f'set(x "{builder}/include/python3.13t;'
        f'{builder}/lib/python3.13t/site-packages/numpy/_core/include")'
    )
    repaired = repair(broken)
    folders = re.findall(r'[^"; ]+include[^"; ]*', repaired)
    assert [(Path(folders[0]) / "Python.h").exists(), len(folders)] == [True, 2]
    assert (Path(folders[1]) / "numpy" / "arrayobject.h").exists()
    assert repair(repaired) == repaired


@pytest.mark.parametrize(
    "page", ["docs/reports.md", "docs/reliability.md", "QUALITY_DECLARATION.md"]
)
def test_pages_name_tests_that_there_are(page: str) -> None:
    """By the begin of a test's name, or by a file's."""
    named = re.findall(r"`K=(test_\w+)`", (ROOT / page).read_text())
    files = [*(ROOT / "test").rglob("test_*.py")]
    tests = "".join(f"def {path.stem}\n{path.read_text()}" for path in files)
    assert named
    assert [name for name in named if f"def {name}" not in tests] == []
