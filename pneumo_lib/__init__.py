"""Chest X-ray pneumothorax segmentation with fully convolutional networks.

`import pneumo_lib as pl` is all a notebook needs. The public names stand in `__init__.pyi`; each is
loaded from its module when it is first used, so that importing the package stays fast and starts
nothing: Keras is imported with the first network.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
