"""Fields of a DICOM header, read whatever they hold.

A field that is empty or holds no number counts as absent, one that holds 0 as present.
"""

import math

import numpy as np
from pydicom.multival import MultiValue


def groups(header, macro):
    """Datasets that may hold a field, by precedence: of the frame, of all frames, of the file."""
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in (header.get(name) or ())[:1]:
            yield from (group.get(macro) or ())[:1]
    yield header


def number(dataset, name):
    """First number of a field; `None` where it is absent, empty or no finite number."""
    return next(iter(numbers(dataset, name)), None)


def numbers(dataset, name):
    """Numbers of a field, `None` for one that is not finite; `()` where it is absent or empty."""
    values = _values(dataset, name)
    return () if values in ([], [""]) else tuple(_as_number(value) for value in values)


def _values(dataset, name):
    """List of what a field holds, as pydicom reads it or else as it is in the file."""
    try:
        values = dataset.get(name)
    except Exception:  # pydicom raises anything, and warns of values that break the standard
        element = dataset.get_item(name)
        if element.VR in ("US", "SS", "US or SS"):
            return np.frombuffer(element.value, "<u2").tolist()
        values = element.value.decode("ascii", "replace").split("\\")
    if values is None:
        return []
    return list(values) if isinstance(values, MultiValue | list) else [values]


def _as_number(value):
    try:
        value = float(str(value).strip("\0 ").replace(",", "."))  # some write 0,14
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def text(dataset, name):
    """First text of a field in capitals, without padding; empty where it is absent."""
    return str(next(iter(_values(dataset, name)), "")).strip("\0 ").upper()
