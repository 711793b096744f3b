"""How Sphinx builds the site; `docs/build_site.py` stages the pages and calls it."""

import importlib.metadata
import re

project = "sfumato"
release = importlib.metadata.version("sfumato")
copyright = "the sfumato authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
smartquotes = False  # 'all' is a value, not a quotation
myst_heading_anchors = 3
default_role = "code"  # docstrings have code between single backticks

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "sfumato"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["sfumato.css"]
html_show_sphinx = False
html_theme_options = {"sidebar_hide_name": False}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def plain_stars(app, what, name, value, options, lines):
    """Docstrings say `(B, *shape)` without backticks, where reST would begin an emphasis."""
    lines[:] = [re.sub(r"(?<![`\\*\w])\*(?=\w)", r"\\*", line) for line in lines]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain_stars, priority=0)
