"""Pieces of the report's page, which stands in one file: tables, and pictures inside it."""

import base64
import html
import pathlib


def table(rows: list[dict[str, str]]) -> str:
    """Rows of text, whose names head the columns, as an HTML table; a row may lack some."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(row.get(name, ''))}</td>" for name in names) + "</tr>"
        for row in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def picture(path: pathlib.Path) -> str:
    """A PNG as an image inside the page."""
    image = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='' src='data:image/png;base64,{image}'>"


def environment(summary: dict) -> str:
    """The device and the versions that a summary names."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"{html.escape(summary['device'])}; {html.escape(versions)}"
