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
    try:
        values = dataset.get(name)
    except Exception:  # pydicom raises anything on text that is no number
        element = dataset.get_item(name)
        if element.VR in ("US", "SS", "US or SS"):  # its sign is warned of, perhaps as an error
            values = np.frombuffer(element.value, "<u2").tolist()
        else:
            values = element.value.decode("ascii", "replace").split("\\")
    values = values if isinstance(values, MultiValue | list | tuple) else [values]
    return tuple(_as_number(value) for value in values) if values not in ([None], [""]) else ()


def _as_number(value):
    try:
        value = float(str(value).strip("\0 ").replace(",", "."))  # some write 0,14
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def text(dataset, name):
    """Text of a field in capitals, without padding; empty where it is absent."""
    try:
        value = dataset.get(name)
    except Exception:  # as above
        value = None
    return str(value or "").strip("\0 ").upper()
