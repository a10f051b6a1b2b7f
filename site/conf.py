"""Sphinx: the notebooks as a course. Nothing is run, and nothing is fetched from other hosts."""

from docutils import nodes
from latex2mathml.converter import convert

project = "Pneumothorax on chest X-rays"
author = "The pneumo authors"
extensions = ["myst_nb"]
html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}  # one search field, not two
html_copy_source = False
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default comes from the network
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"


def _formula(display, around="{}"):
    def visit(writer, node):
        writer.body.append(around.format(convert(node.astext(), display=display)))
        raise nodes.SkipNode

    return visit


def setup(app):
    """Formulas become MathML, which browsers draw themselves; MathJax would be fetched."""
    app.add_html_math_renderer(
        "mathml", (_formula("inline"), None), (_formula("block", "<p>{}</p>"), None)
    )
