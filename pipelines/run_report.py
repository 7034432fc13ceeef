"""What a local run leaves for people: ``report.html`` and the table printed last.

The steps' own pages (data statistics, learning curve, benchmark) are embedded, so that the one file can be
sent to a colleague; the folders with data and model are linked relative to it.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from recsys import report

MAX_BYTES = 20_000_000
PAGES = ("system.HTML", "system.Markdown")


def html(summary: Mapping[str, Any], folder: Path, artifacts: Mapping[str, Mapping[str, str]]) -> str:
    """The report page of a run.

    Args:
        summary: what ``summary.json`` holds.
        folder: the run's folder.
        artifacts: step to its artifacts: name to schema title (``system.HTML``, ...).
    """
    head = {
        key: summary[key]
        for key in ("run", "id", "status", "seconds", "failed_step", "error")
        if key in summary
    }
    sections = [report.facts(head)]
    rows = metric_rows(summary)
    if rows:
        sections.append(report.table(["step", "metric", "value"], rows, "Metrics"))
    sections.append(report.facts({k: _plain(v) for k, v in summary["parameters"].items()}, "Parameters"))
    for step, outputs in artifacts.items():
        for name, title in outputs.items():
            page = folder / step / name
            if title in PAGES and page.is_file():
                sections.append(_embedded(f"{step}: {name}", page.read_text(encoding="utf-8"), title))
    sections.append(_links(folder, artifacts))
    # No dashboard shows this page, and it holds the pages of all steps.
    return report.page(f"Run {summary['id']}", *sections, max_bytes=MAX_BYTES)


def metric_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(step, metric, value) of every metric in a summary."""
    return [
        (step, name, value) for step, metrics in summary["steps"].items() for name, value in metrics.items()
    ]


def aligned(rows: list[tuple[str, str, Any]]) -> str:
    """Rows as text, columns aligned; numbers with six significant digits."""
    texts = [
        (step, name, f"{value:.6g}" if isinstance(value, float) else str(value)) for step, name, value in rows
    ]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        f"{step:<{widths[0]}}  {name:<{widths[1]}}  {value:>{widths[2]}}" for step, name, value in texts
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "-"
    return str(value) or "-"


def _embedded(caption: str, content: str, title: str) -> str:
    if title == "system.Markdown":
        body = f"<pre>{escape(content)}</pre>"
    else:
        body = (
            '<iframe sandbox="allow-scripts" style="width:100%;height:75vh;border:0" '
            f'srcdoc="{escape(content)}"></iframe>'
        )
    return f"<details open><summary>{escape(caption)}</summary>{body}</details>"


def _links(folder: Path, artifacts: Mapping[str, Mapping[str, str]]) -> str:
    names = [f"{step}/{name}" for step, outputs in artifacts.items() for name in ("log.txt", *outputs)]
    items = "".join(
        f'<li><a href="{escape(name)}">{escape(name)}</a></li>' for name in names if (folder / name).exists()
    )
    return f"<h2>Files</h2><ul>{items}</ul>"
