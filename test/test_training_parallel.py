"""Training in two processes that torchrun starts: one step for both, and exact resume.

This file is also what the two processes run, see the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import base_stage, loop_of, options, same

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.training import cli
from lowlat_seg_ros.lab.training.loop import Loop, LoopConfig
from lowlat_seg_ros.lab.training.parallel import Ranks, device_of, joined

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rendered_once")]

ROOT = Path(__file__).parents[1]
TRAIN = ("base", "--network", "tiny", "--size", "32x32", "--steps", "3", "--out")


def load(path: Path) -> dict[str, Any]:
    """A file of ``torch.save``'s."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with what :func:`work` leaves in two processes, and what they printed.

    One start for all tests, because starting costs more than all else.
    """
    out: Path = tmp_path_factory.mktemp("trained")
    paths = str(ROOT), os.environ.get("PYTHONPATH")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", __file__, str(out)],
        cwd=ROOT,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_both_processes_take_the_mean_step_and_stay_the_same(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    first, second = (load(trained[0] / f"rank{rank}.pt") for rank in range(2))
    alone = [gradient(loop_of(base_stage(), tmp_path, seed=seed)) for seed in range(2)]
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    assert not same(alone[0], alone[1])
    assert same(first["gradient"], mean)
    assert same(second["gradient"], mean)
    for kind in ("weights", "average"):
        assert same(first[kind], second[kind]), kind
    assert not torch.equal(first["generator"], second["generator"])


def test_stopped_and_resumed_equals_unbroken(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert "run it again to go on" in printed
    state = load(folder / "stopped" / "base.resume.pt")
    assert (state["step"], len(state["generator"])) == (1, 2)

    one, other = (load(folder / name / "base.resume.pt") for name in ("unbroken", "resumed"))
    assert one["step"] == other["step"] == 3
    for kind in ("segmenter", "average"):
        assert same(one[kind], other[kind]), kind
    assert torch.equal(one["generator"], other["generator"])
    moments = one["optimiser"]["state"], other["optimiser"]["state"]
    assert moments[0].keys() == moments[1].keys()
    assert all(same(moments[0][k], moments[1][k]) for k in moments[0])
    assert (folder / "resumed" / "base.safetensors").exists()


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device_of("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        with pytest.raises(ConfigError, match="one GPU for 2 processes"):
            device_of("cuda:0")
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert device_of("cuda") == torch.device("cuda:0")


def gradient(loop: Loop) -> dict[str, torch.Tensor]:
    """What the loop's next step is made of."""
    loop.gradients()
    named = loop.stage.segmenter.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def work(ranks: Ranks, out: Path) -> None:
    """One of two processes: trainings with the command, then one whose gradient is kept."""
    cpu = torch.device("cpu")
    assert cli.train(options(*TRAIN, out / "unbroken"), cpu, ranks) == 0
    # The time is over with the first step.
    status = cli.train(options(*TRAIN, out / "stopped", "--max-minutes", "1e-9"), cpu, ranks)
    if ranks.first:
        assert status == 3
        shutil.copytree(out / "stopped", out / "resumed")
    torch.distributed.barrier()  # the other process waits for the copy
    assert cli.train(options(*TRAIN, out / "resumed"), cpu, ranks) == 0
    stage = base_stage()
    if not ranks.first:  # the first one's weights count
        torch.nn.init.ones_(stage.base.backbone.conv1.weight)
    config = LoopConfig(steps=4, batch_size=2, precision="fp32")
    loop = Loop(stage, config, out / "loop", ranks)
    kept = gradient(loop)
    assert loop.run()
    saved = {
        "gradient": kept,
        "weights": stage.segmenter.state_dict(),
        "average": loop.average,
        "generator": loop.generator.get_state(),
    }
    torch.save(saved, out / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    from conftest import render_once

    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as ranks, render_once():
        work(ranks, Path(sys.argv[1]))
