"""Log levels within a block."""

import logging
from contextlib import contextmanager


@contextmanager
def log_levels(**levels):
    """Sets levels of loggers by name, `__` for a dot, such as `pydicom=50`, and restores them."""
    loggers = {logging.getLogger(name.replace("__", ".")): level for name, level in levels.items()}
    former = {logger: logger.level for logger in loggers}
    try:
        for logger, level in loggers.items():
            logger.setLevel(level)
        yield
    finally:
        for logger, level in former.items():
            logger.setLevel(level)
