"""Sphinx, for course and report: nothing is run, and nothing is fetched from other hosts."""

from docutils import nodes
from latex2mathml.converter import convert

project = "Pneumothorax on chest X-rays"
author = "The pneumo authors"
extensions = ["myst_nb"]
html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}  # one search field, not two
html_sourcelink_suffix = ""  # so that the button above a page downloads a notebook
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default comes from the network; a progress bar then is not drawn
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
smartquotes_action = "qe"  # no dashes: they would spoil the options of commands


def _formula(display):
    def visit(writer, node):
        writer.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit


def _describe_figures(app, doctree):
    """A figure of a notebook is described by the heading above it, for those who cannot see it."""
    for section in reversed(list(doctree.findall(nodes.section))):  # the innermost first
        for image in section.findall(nodes.image):
            image.setdefault("alt", f"Figure: {section[0].astext()}")


def setup(app):
    """Formulas become MathML, which browsers draw themselves; MathJax would be fetched."""
    app.add_html_math_renderer("mathml", (_formula("inline"), None), (_formula("block"), None))
    app.connect("doctree-read", _describe_figures)
