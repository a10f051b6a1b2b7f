"""What the predictions of single files and of archives share."""

import json

IDENTITY = "prediction.json"


def create_results_folder(folder, settings, readme, *, names, identity, write):
    """Begin a folder of predictions, or go on in one of the same settings.

    `IDENTITY` is written before anything else: a process that is killed after it leaves
    a folder that the next call knows as its own.

    Args:
        folder: path or URL, for the error.
        settings: dict that decides the predictions.
        readme: text of `README.txt`.
        names: of what lies in the folder. Hidden files do not count: those of locks and of
            interrupted writes are hidden.
        identity: content of its `IDENTITY`; `None` without one.
        write: function `write(name, data)` that writes a file of the folder atomically.

    Raises:
        ValueError: if the folder holds other files, or predictions of other settings.
    """
    held = None
    if identity is not None:
        found = json.loads(identity)
        if differs := [name for name in settings if found.get(name) != settings[name]]:
            held = f"predictions of other settings ({', '.join(differs)})"
    elif any(not name.startswith(".") for name in names):
        held = "other files"
    if held:
        raise ValueError(
            "Predictions need a folder of their own: give another --out. "
            f"Received: {folder}, which holds {held}"
        )
    write(IDENTITY, f"{json.dumps(settings, indent=2)}\n".encode())
    write("README.txt", readme.encode())
