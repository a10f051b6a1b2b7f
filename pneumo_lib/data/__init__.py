"""From X-ray files to prepared arrays: case table, splits, images, masks, phantoms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
