"""Pieces of the report's page, which stands in one file: tables, and pictures inside it."""

import base64
import html
import io
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from PIL import Image

WIDEST, COLORS = 960, 96  # of a picture: the page's own width, and what keeps it small


def table(rows: list[dict[str, str]]) -> str:
    """Rows of text, whose names head the columns, as an HTML table; a row may lack some."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(row.get(name, ''))}</td>" for name in names) + "</tr>"
        for row in rows
    ]
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def note(text: str) -> str:
    """A remark in plain text."""
    return f"<p class=note>{html.escape(text)}</p>"


def missing(command: str) -> str:
    """What has not been run, and how to."""
    return f"<p class=missing>Not run. <code>{command}</code></p>"


def folded(what: str, rest: str) -> str:
    """What a reader may unfold: of the first paragraph only its first line is shown before."""
    head, _, more = what.removeprefix("<p>").partition("<br>")
    return f"<details><summary>{head}</summary><p>{more}{rest}</details>"


def captioned(words: str, pictures: str) -> str:
    """Pictures of one figure under what they are of; small ones find room side by side."""
    return f"<figure><figcaption>{html.escape(words)}</figcaption>{pictures}</figure>"


def side_by_side(figures: list[str]) -> str:
    return f"<div class=row>{''.join(figures)}</div>"


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
        f"<p><b>{html.escape(path.stem)}</b>: {html.escape(what)}<br>{where}<br>"
        f"<code>{html.escape(summary['command'])}</code></p>"
    )


def picture(path: pathlib.Path) -> str:
    """A PNG as an image inside the page, in few colours; the page gives it its words."""
    packed = io.BytesIO()
    with Image.open(path) as image:
        image = image.convert("RGB")
        if image.width > WIDEST:
            height = round(image.height * WIDEST / image.width)
            image = image.resize((WIDEST, height), Image.Resampling.LANCZOS)
        few = image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(packed, "png", optimize=True)
    data = base64.b64encode(packed.getvalue()).decode()
    size = f"width={image.width} height={image.height}"
    return f"<img alt='' loading=lazy {size} src='data:image/png;base64,{data}'>"


def figure(draw: Callable[[Any, pathlib.Path], bool], found: Any) -> str:
    """A figure as an image inside the page, or nothing where what was found has none to show."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "figure.png"
        if not draw(found, path):
            return ""
        return "".join(map(picture, sorted(path.parent.iterdir())))
