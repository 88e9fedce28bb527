"""The page of an evaluation: tables, charts and what they were measured on, as Markdown."""

from __future__ import annotations

from pathlib import Path

from lowlat_seg_ros.lab.evaluation.charts import Chart
from lowlat_seg_ros.lab.evaluation.comparison import Comparison
from lowlat_seg_ros.lab.evaluation.grid import Grid, class_ious, intervals, scores
from lowlat_seg_ros.lab.evaluation.report import Facts, notes

#: Name of the page in the folder of the results.
PAGE = "results.md"


def write_page(folder: Path, facts: Facts, done: Comparison, charts: list[Chart]) -> Path:
    """Write the page beside its ``charts``, to which it links; returns its path."""
    weights = f"Weights: `{facts.checkpoint}`, SHA-256 `{facts.sha256}`."
    blocks = [
        f"# Results: {facts.title}",
        f"Made by this command, DIR being the folder of the data:\n\n```\n{facts.command}\n```",
        "\n".join(f"- {note}" for note in (*notes(facts, done), weights)),
    ]
    if done.results:
        methods = "`lowlat-seg evaluate --help` says what each method is."
        blocks += ["## Methods", methods, markdown(scores(done))]
        blocks += ["## Intervals", markdown(intervals(done))]
        blocks += ["## Classes", markdown(class_ious(done, facts.classes, decimals=1))]
    if charts:
        blocks.append("## Charts")
        blocks += [picture(chart, folder) for chart in charts]
    if done.left_out:
        reasons = [
            f"- {', '.join(f'`{name}`' for name in names)}: {reason}"
            for reason, names in done.reasons.items()
        ]
        blocks += ["## Left out", "\n".join(reasons)]
    path = folder / PAGE
    path.write_text("\n\n".join(blocks) + "\n")
    return path


def picture(chart: Chart, folder: Path) -> str:
    """``chart`` with its caption, as a page in ``folder`` shows it."""
    link = chart.path.relative_to(folder).as_posix()
    return f"{chart.caption}\n\n![{chart.path.stem.replace('_', ' ')}]({link})"


def markdown(grid: Grid) -> str:
    """``grid`` as a table with a line for each group's heading, if it has one."""
    lines = [_line(grid.columns), _line((":---", *("---:" for _ in grid.columns[1:])))]
    for heading, rows in grid.groups.items():
        if heading:
            lines.append(_line((f"**{heading}**", *("" for _ in grid.columns[1:]))))
        lines += [_line((f"`{row[0]}`", *row[1:])) for row in rows]
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    # A bar would end the cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
