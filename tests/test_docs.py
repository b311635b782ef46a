"""The README and the how-to pages do what they say: every block of Python runs, in order, and
prints what the `text` block behind it shows.

The tutorials are not here: the build of the documents executes them (`make docs`). A block that
cannot run everywhere stands under `<!-- not run: REASON -->`. A `text` block is compared word for
word; under `<!-- output: rtol=0.5, REASON -->` its numbers may be off by that much.
"""

import contextlib
import importlib.util
import io
import pathlib
import re

import pytest

from tests.conftest import OPTAX

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if "_build" not in page.parts
        and "{code-cell}" not in page.read_text()
        and "```python" in page.read_text()
    ),
]
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>python|text)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\(([^()\s]+)\)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
NEEDS = {"equinox"}  # imports of pages that the extras for tests do not bring


def blocks(page: pathlib.Path):
    """`(line, language, body, note)` of every block of Python and of what it prints."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("body")) + 1
        yield line, found["language"], found["body"], found["note"] or ""


def run_page(page: pathlib.Path) -> list[str]:
    """Runs the blocks of a page in one namespace; compares, and returns, what each prints."""
    namespace, printed = {"__name__": "page"}, None
    outputs = []
    for line, language, body, note in blocks(page):
        where = f"{page.relative_to(ROOT)}:{line}"
        if language == "text":
            assert printed is not None, f"{where}: no block of Python before this output"
            compare(printed, body, note, where)
            printed = None
        elif not note.startswith("not run: "):
            code = compile("\n" * (line - 1) + body, page, "exec")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, namespace)
            printed = out.getvalue()
            outputs.append(printed)
    return outputs


def compare(printed: str, shown: str, note: str, where: str):
    """Fails unless `printed` is what is `shown`, numbers to within the note's rtol."""
    rtol = re.match(r"output: rtol=([\d.]+), .", note)
    assert not note or rtol, f"{where}: {note!r} is no note on an output"
    if rtol is None:
        assert printed.split() == shown.split(), where
        return
    assert NUMBER.sub("0", printed).split() == NUMBER.sub("0", shown).split(), f"{where}: {printed}"
    for here, there in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        off = abs(float(here) - float(there))
        assert off <= float(rtol[1]) * abs(float(there)), f"{where}: {printed}"


def by_itself(page):
    """The name of a page as a parameter, and the modes in which it does not hold."""
    name = str(page.relative_to(ROOT))
    marks = [pytest.mark.not_in(*OPTAX)] if name == "docs/howto/flax.md" else []
    return pytest.param(page, id=name, marks=marks)


@pytest.mark.parametrize("page", list(map(by_itself, PAGES[1:])))
def test_pages_do_what_they_say(page, tmp_path, monkeypatch, quick_compilation):
    for name in NEEDS:
        if re.search(rf"^(import|from) {name}\b", page.read_text(), re.MULTILINE):
            pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)  # where runs are written
    run_page(page)


@pytest.mark.not_in("x64", "what is drawn in float64 are other numbers: another network is trained")
def test_the_readme_does_what_it_says(tmp_path, monkeypatch):
    """Whatever the processor makes of its numbers, harder inputs are pondered for longer."""
    monkeypatch.chdir(tmp_path)
    printed = run_page(ROOT / "README.md")[0]
    levels = re.findall(r"bits: ([\d.]+) steps", printed)
    assert float(levels[-1]) > 1.15 * float(levels[0])


def test_compare_tells_outputs_apart():
    for printed, note in (("2.4 steps", ""), ("2.0 layers", "output: rtol=0.5, x")):
        with pytest.raises(AssertionError):
            compare(printed, "2.0 steps", note, "page:1")
    with pytest.raises(AssertionError):
        compare("3.1 steps", "2.0 steps", "output: rtol=0.5, x", "page:1")
    compare("2.9 steps", "2.0 steps", "output: rtol=0.5, x", "page:1")


def test_tables_are_what_the_results_say(monkeypatch):
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    tables.main(["--check"])
    shown = (ROOT / "README.md").read_text()
    monkeypatch.setattr(tables, "short", lambda value: "0")
    assert tables.rewritten("README.md") != shown
    with pytest.raises(SystemExit, match=r"docs/benchmarks.md is not what the results say"):
        tables.main(["--check"])


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_inside_the_repository_lead_somewhere(page):
    """Those of docs/ are checked by its build."""
    for link in LINK.findall(BLOCK.sub("", (ROOT / page).read_text())):
        if not link.startswith(("http", "#")):
            assert (ROOT / link.partition("#")[0]).exists(), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
