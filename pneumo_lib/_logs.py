"""Log levels for the length of a block."""

import logging
from contextlib import contextmanager


@contextmanager
def log_levels(**levels):
    """Inside the block, loggers show records from another level on: `log_levels(pydicom=50)`.

    Args:
        levels: of `logging`, by the loggers' names, `__` in the place of a dot.
    """
    loggers = {logging.getLogger(name.replace("__", ".")): to for name, to in levels.items()}
    former = {logger: logger.level for logger in loggers}
    try:
        for logger, level in loggers.items():
            logger.setLevel(level)
        yield
    finally:
        for logger, level in former.items():
            logger.setLevel(level)
