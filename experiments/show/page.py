"""The report's page around its body: contents, places to link to, a word for every picture."""

import html
import pathlib
import re

STYLE = pathlib.Path(__file__).with_name("report.css").read_text()
PIECES = re.compile(
    r"<h2 id=(?P<id>[\w-]+)>(?P<section>.*?)</h2>|<h3>(?P<part>.*?)</h3>|<img alt=''"
)


def whole(title: str, about: str, body: str) -> str:
    """One self-contained HTML page.

    Args:
      about: what comes before the contents, with the page's h1.
      body: what comes after, in sections that begin with `<h2 id=NAME>` and parts with `<h3>`. Each
        part gets a place to link to, and a picture without a word of its own that of its part.
    """
    linked, contents = _linked(body)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>\n{STYLE}</style><body>{about}\n{contents}\n{linked}</body></html>\n"
    )


def _linked(body: str) -> tuple[str, str]:
    """The body with its links and words, and the contents."""
    section, name, part, count, entries = "", "", "", 0, []

    def piece(match: re.Match) -> str:
        nonlocal section, name, part, count
        if match["id"]:
            section, name, part, count = match["section"], match["id"], "", 0
            entries.append((name, section, []))
            return match[0]
        if match["part"]:
            part, count = match["part"], count + 1
            place = f"{name}-{count}"
            if entries:
                entries[-1][2].append((place, part))
            return f"<h3 id={place}>{part}</h3>"
        words = ": ".join(filter(None, (section, part)))
        return f"<img alt='{html.escape(re.sub('<.*?>', '', words), quote=True)}'"

    linked = PIECES.sub(piece, body)
    lines = []
    for place, title, parts in entries:
        links = "".join(f"<li><a href='#{at}'>{words}</a></li>" for at, words in parts)
        lines.append(
            f"<li><a href='#{place}'>{title}</a>{f'<ul>{links}</ul>' if links else ''}</li>"
        )
    return linked, f"<nav aria-label=Contents><ul>{''.join(lines)}</ul></nav>" if lines else ""
