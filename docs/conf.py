"""Settings of Sphinx: `make docs` builds this folder into build/docs; warnings are errors."""

import importlib.resources
import shutil
from pathlib import Path
from typing import Any

from docs import reference
from fdrl_jax import __version__

project = "fdrl_jax"
author = copyright = "The fdrl_jax authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["**/README.md", "metrics.md"]  # The latter is a part of evaluation.md.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "literal"  # Docstrings have single backticks around code.
smartquotes_action = "qe"  # No dashes, which would change flags such as --config.
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88  # Longer ones have a line per argument.
python_use_unqualified_type_names = True
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # Attributes once, in the docstring, and not as members too.

html_theme = "furo"
html_title = f"fdrl_jax {release}"
html_show_sphinx = False

# MathJax in one file, next to the pages: they can be read without a network.
mathjax_path = "tex-svg.js"
_MATHJAX = importlib.resources.files("sphinx-mathjax-offline") / "static" / "mathjax"
html_static_path = [str(_MATHJAX / mathjax_path), "style.css"]
html_css_files = ["style.css"]


def setup(app: Any) -> None:
    """Writes the generated pages, and copies the page in which points flow."""
    app.connect("builder-inited", lambda app: reference.write(Path(app.srcdir)))
    app.connect("autodoc-process-signature", reference.shorten)
    app.connect("autodoc-skip-member", reference.skip_fields)
    shutil.copytree(Path(app.srcdir, "flow"), Path(app.outdir, "flow"), dirs_exist_ok=True)
