"""Pieces of the report's page, which stands in one file: tables, and pictures inside it."""

import base64
import html
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any


def table(rows: list[dict[str, str]]) -> str:
    """Rows of text, whose names head the columns, as an HTML table; a row may lack some."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(row.get(name, ''))}</td>" for name in names) + "</tr>"
        for row in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def note(text: str) -> str:
    """A remark in plain text."""
    return f"<p class=note>{html.escape(text)}</p>"


def missing(command: str) -> str:
    """What has not been run, and how to."""
    return f"<p class=missing>Not run. <code>{command}</code></p>"


def heading(path: pathlib.Path, summary: dict[str, Any]) -> str:
    """What a summary tells: what ran, on what, by which command."""
    minutes = summary["wall_time_seconds"] / 60
    return ran(
        path,
        summary,
        f"preset {summary['config']['preset']}, {len(summary['members'])} networks, "
        f"{minutes:.0f} minutes of training",
    )


def ran(path: pathlib.Path, summary: dict[str, Any], what: str) -> str:
    """The name of a summary, `what` ran, where, and the command."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    where = f"{html.escape(summary['device'])}; {html.escape(versions)}"
    return (
        f"<p><b>{html.escape(path.stem)}</b>: {html.escape(what)} on {where}<br>"
        f"<code>{html.escape(summary['command'])}</code></p>"
    )


def picture(path: pathlib.Path) -> str:
    """A PNG as an image inside the page."""
    image = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='' src='data:image/png;base64,{image}'>"


def figure(draw: Callable[[Any, pathlib.Path], bool], found: Any) -> str:
    """A figure as an image inside the page, or nothing where what was found has none to show."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "figure.png"
        if not draw(found, path):
            return ""
        return "".join(map(picture, sorted(path.parent.iterdir())))
