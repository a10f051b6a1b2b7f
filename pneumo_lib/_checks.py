"""Checks of settings, each a function of the setting's name and value that returns the value.

Numbers, lists and switches that a parameter file or papermill gave as text are converted.
"""

import ast
import difflib
import math
import numbers
from functools import partial


def check_name(name, value, known):
    """`value`, if it is one of the `known`, else a `ValueError` that suggests the closest."""
    if value not in tuple(known):
        raise ValueError(
            f"`{name}` must be one of {', '.join(known)}. "
            f"Received: {name}={value!r}{did_you_mean(value, known)}"
        )
    return value


def did_you_mean(value, known):
    """Text that asks "Did you mean" the known name closest to `value`; or empty."""
    close = difflib.get_close_matches(str(value), map(str, known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def refuse(name, value, rule):
    """Raise `ValueError`: what the setting `name` must be, and what came."""
    raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")


def as_value(value):
    """`value`, or what it means where a parameter file or papermill gave it as text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return value


def number(*, whole=False, low=0, above=None, below=math.inf):
    """Check that a number is at least `low`, or above `above`, and below `below`."""
    kind, word = (numbers.Integral, "whole number") if whole else (numbers.Real, "number")
    least = f"above {above}" if above is not None else f"of {low} or more"
    most = "" if below == math.inf else f" and below {below}"

    def check(name, value):
        given = as_value(value)
        right = isinstance(given, kind) and not isinstance(given, bool)
        if right and (given > above if above is not None else given >= low) and given < below:
            return int(given) if whole else float(given)
        return refuse(name, value, f"a {word} {least}{most}")

    return check


def one_of(*known):
    """Check that a name is one of the `known`."""
    return partial(check_name, known=known)


def optional(check):
    """The same check, of a setting that may also be None."""
    return lambda name, value: None if value in (None, "None") else check(name, value)


def or_auto(check):
    """The same check, of a setting that may also be "auto"."""
    return lambda name, value: value if value == "auto" else check(name, value)


def text(name, value):
    """Check that it is a name or a path; one of digits alone may come as a number."""
    if isinstance(value, bool | float | list | tuple | dict) or not str(value).strip():
        refuse(name, value, "a name or a path")
    return str(value)


def switch(name, value):
    """Check that it is True or False."""
    if not isinstance(as_value(value), bool):
        refuse(name, value, "True or False")
    return as_value(value)
