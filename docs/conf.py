"""How the documents are built: `make docs`, which is sphinx-build with warnings as errors."""

import hashlib
import importlib
import inspect
import os
import pathlib
import re

from docutils import nodes
from sphinx.util import logging
from sphinx.util.inspect import stringify_signature

import actjax

project = "actjax"
author = "The actjax developers"
version = release = actjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `name` in a docstring: a link where it is documented, else code

html_theme = "sphinx_book_theme"
html_title = "actjax"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "navbar_persistent": [],
}

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# The tutorials are executed here alone, once for each state of their code and of the library.
sources = sorted(pathlib.Path(actjax.__file__).parent.rglob("*.py"))
library = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
nb_execution_mode = "cache"
nb_execution_cache_path = str(pathlib.Path(__file__).parent / f"_build/executed/{library}")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove-warn"
nb_merge_streams = True
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the kernels inherit it

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text has types and shapes
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

PUBLIC = ("actjax", "actjax.learned", "actjax.tasks", "actjax.training")
logger = logging.getLogger(__name__)


def list_external_links(app, doctree):
    """Keeps the addresses outside of the documents: they are listed, not fetched."""
    found = app.env.__dict__.setdefault("external_links", {})
    found[app.env.docname] = sorted(
        {
            node["refuri"]
            for node in doctree.findall(nodes.reference)
            if node.get("refuri", "").startswith(("http:", "https:"))
        }
    )


def finish(app, error):
    """Writes the list of external links."""
    if error:
        return
    links = sorted({link for found in app.env.external_links.values() for link in found})
    (pathlib.Path(app.outdir) / "external_links.txt").write_text("\n".join(links) + "\n")
    print(f"{len(links)} external links are listed, unchecked, in {app.outdir}/external_links.txt")


def check_public_names(app, env):
    """Warns, and so fails, where a public name is on no page."""
    known = env.get_domain("py").objects
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            if f"{module}.{name}" not in known:
                logger.warning("%s.%s is public and on no page of docs/api", module, name)


def skip_fields(app, what, name, obj, skip, options):
    """The fields of a record stand in its signature and under Attributes, in words."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def show_init(app, what, name, obj, options, signature, annotation):
    """The arguments of a Flax module, whose metaclass has none but `*args, **kwargs`; a protocol
    has none."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    own = inspect.signature(obj.__init__)
    own = own.replace(parameters=[*own.parameters.values()][1:])  # without self
    text = stringify_signature(own, show_annotation=False, show_return_annotation=False)
    text = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", text)
    text = re.sub(r"<PjitFunction of <function (\w+)[^>]*>>", r"\1", text)
    return "" if text == signature else text, None


def setup(app):
    app.connect("autodoc-process-signature", show_init)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", list_external_links)
    app.connect("env-check-consistency", check_public_names)
    app.connect("build-finished", finish)
