"""Sphinx' settings for the site; scripts/site.py copies this file beside the pages and runs Sphinx there."""

import bitlib

project = "bitlib"
author = "The bitlib contributors"
project_copyright = author
version = release = bitlib.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_design"]
exclude_patterns = ["_build", "extra"]
html_extra_path = ["extra"]  # copied as it is: what the drawing page loads
default_role = "literal"  # docstrings mark code with single backticks

nb_execution_mode = "off"  # the stored outputs are the ones that tests compare
nb_ipywidgets_js = {}  # nothing of a page needs them, and they come from elsewhere
nb_code_prompt_show, nb_code_prompt_hide = "Open", "Close"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_rtype = False

html_theme = "furo"
html_title = "bitlib"
html_theme_options = {
    # Dark and light text on their backgrounds: at least 4.5 to 1.
    "light_css_variables": {"color-foreground-muted": "#5a5c63"},
    "dark_css_variables": {"color-foreground-muted": "#a5a8b0"},
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def plain(app, what, name, obj, options, lines):
    """Napoleon would take what stands before the colon, in a constant's docstring, for its type."""
    if what in ("data", "attribute") and lines:
        lines[:] = [line.replace(": ", " – ") for line in lines]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain, priority=400)
