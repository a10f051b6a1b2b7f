"""Figures in one style.

Each function returns its `Figure` or `Axes` and neither shows nor saves it: keep the result in a
notebook (`figure = gallery(...)`), which Jupyter draws once at the end of the cell, and write it
with `export(figure, ...)`. Shared arguments: `title` above the figure; `note`, small print below
it such as "synthetic"; `ax`, where there is one panel, None for a new figure.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
