"""The widgets of `explorer.explore()`: controls, and what each of them repaints."""

import tempfile
from html import escape
from pathlib import Path

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import traitlets

from pneumo_lib.apps.explorer import cases
from pneumo_lib.data.images import SUFFIXES, read_image, resize_image
from pneumo_lib.evaluation.operating_point import apply_operating_point
from pneumo_lib.runs import caveats, load_operating_point, open_run

_LARGEST_UPLOAD = 64 * 2**20  # bytes; an X-ray of 4000 x 4000 pixels at 16 bits is half of it
_TOO_LARGE = f"An X-ray file may hold {_LARGEST_UPLOAD >> 20} MiB. Received: a larger one."
_HINT = (
    "Keys, with the pointer on the picture: <b>← →</b> case, <b>↑ ↓</b> threshold, "
    "<b>1–4</b> layers, <b>5</b> image, <b>+ − 0</b> zoom. Double click and drag to look closer. "
    "<b>For research and teaching, not a medical device.</b>"
)
_BACKGROUNDS = ("X-ray", "as the network sees it", "none")


class Viewer(anywidget.AnyWidget):
    """Pictures under one zoom, with keys and a place to drop files: `explorer.js`."""

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)  # JPEG
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)  # one each
    position = traitlets.Unicode().tag(sync=True)
    suffixes = traitlets.List(list(SUFFIXES)).tag(sync=True)
    max_bytes = traitlets.Int(_LARGEST_UPLOAD).tag(sync=True)


class Panel:
    """`widget` and the state behind it: open runs, the list of cases, what is on show.

    Args:
        opened: `OpenRun`.
        beside: another `OpenRun`, or None.
    """

    def __init__(self, opened, beside=None):
        self.open = {one.run.folder: one for one in (opened, beside) if one}
        self.rows = []  # of the cases to step through
        self.image_id = None  # of the case on show
        self.contents = []  # on show: (OpenRun, image, mask, probability), one or two
        self.incoming = None  # of a file that is being received
        self._make_controls(opened, beside)
        self.widget = self._arrange()
        self._listen()
        self._list_cases()

    # -- controls

    def _make_controls(self, opened, beside):
        finished = {path.parent for path in opened.run.folder.parent.glob("*/config.json")}
        folders = sorted(f for f in finished | set(self.open) if ".old-" not in f.name)
        names = [(folder.name, folder) for folder in folders]
        splits = ["all", *dict.fromkeys(opened.cases["split"])]
        drop, slide = widgets.Dropdown, widgets.FloatSlider
        self.run = drop(options=names, value=opened.run.folder, description="Run")
        self.beside = drop(options=[("–", ""), *names], description="Beside")
        self.beside.value = beside.run.folder if beside else ""
        self.split = drop(options=splits, description="Split")
        self.split.value = "test" if "test" in splits else "all"
        self.order = drop(options=cases.ORDERS, description="Cases")
        self.position = widgets.IntSlider(1, 1, 1, description="Case")
        self.find = widgets.Text(
            placeholder="part of an id, then Enter", description="Find", continuous_update=False
        )
        self.threshold = slide(0.5, min=0.01, max=1, step=0.01, description="Threshold")
        self.tuned = widgets.Checkbox(description="at the run's operating point", indent=True)
        self.opacity = slide(0.55, min=0, max=1, step=0.05, description="Opacity")
        self.background = drop(options=_BACKGROUNDS, description="Image")
        self.layers = {
            name: widgets.ToggleButton(name == "errors", description=name.capitalize())
            for name in cases.LAYERS
        }
        self.viewer = Viewer()
        for name in ("title", "scores", "legend", "status", "note"):
            setattr(self, name, widgets.HTML())

    def _arrange(self):
        groups = (
            (self.run, self.beside, self.note),
            (self.split, self.order, self.position, self.find),
            (self.background, widgets.Box(list(self.layers.values())), self.opacity),
            (self.threshold, self.tuned, self.status),
        )
        controls = widgets.VBox([widgets.VBox(group) for group in groups])
        hint = widgets.HTML(_HINT)
        picture = widgets.VBox([self.title, self.viewer, self.legend, self.scores, hint])
        panel = widgets.Box([picture, controls])
        for part, name in (
            (panel, "explorer"), (picture, "picture"), (controls, "controls"), (hint, "hint"),
            (self.title, "title"), (self.scores, "scores"), (self.legend, "legend"),
            (self.status, "status"), (self.note, "hint"),
        ):  # fmt: skip
            part.add_class(f"pneumo-{name}")
        return panel

    def _listen(self):
        paints = (self.threshold, self.tuned, self.opacity, self.background, *self.layers.values())
        for controls, act in (
            ((self.run, self.beside), self._choose_run),
            ((self.split, self.order), lambda _: self._list_cases()),
            ((self.position,), lambda _: self._load()),
            ((self.find,), lambda change: self._find(change["new"].strip())),
            (paints, lambda _: self._paint()),
        ):
            for control in controls:
                control.observe(act, "value")
        self.viewer.on_msg(lambda _viewer, content, buffers: self._hear(content, buffers))

    # -- from a choice to a case

    def _shown(self):
        """The open runs on show, one or two."""
        return [self.open[folder] for folder in (self.run.value, self.beside.value) if folder]

    def _choose_run(self, change):
        folder = change["new"]
        try:
            if folder and folder not in self.open:
                self.open[folder] = open_run(folder)
        except (FileNotFoundError, ValueError) as error:
            change["owner"].value = change["old"]
            self._say(error)
        else:
            self._list_cases(self.image_id)

    def _list_cases(self, image_id=None):
        """List the cases that were asked for, and show the one of that id or the first."""
        opened = self._shown()[0]
        self.note.value = escape(caveats([opened.run]))
        self.rows = cases.order_cases(opened, self.order.value, split=self.split.value)
        ids = opened.cases["image_id"][self.rows].tolist()
        place = ids.index(image_id) + 1 if image_id in ids else 1
        moves = self.position.value != place
        with self.position.hold_trait_notifications():
            self.position.max = max(1, len(ids))
            self.position.value = place
        if not moves:  # else it has been loaded
            self._load()

    def _find(self, text):
        """Show the first case whose id holds the text."""
        ids = self._shown()[0].cases["image_id"]
        found = ids[ids.str.contains(text, regex=False)]
        if found.empty:
            self._say(f"No id of this run holds: {text}")
        elif text:
            self.split.value, self.order.value = "all", "by id"
            self._list_cases(found.iloc[0])

    def _load(self):
        """Read the case on show: once for however many repaints."""
        self.contents, self.image_id, self.title.value = [], None, ""
        self._say("" if self.rows else "No case of this split is like that.")
        if self.rows:
            case = self._shown()[0].cases.loc[self.rows[self.position.value - 1]]
            self.image_id = case["image_id"]
            label = "pneumothorax" if case["has_pneumothorax"] else "no pneumothorax"
            self.title.value = escape(f"{case['split']} · {label} · {self.image_id}")
            for opened in self._shown():
                rows = np.flatnonzero(opened.cases["image_id"] == self.image_id)
                if len(rows):
                    self.contents.append((opened, *cases.read_case(opened, rows[0])))
                else:
                    self._say(f"{opened.run.folder.name} does not know this case.")
        self._paint()

    # -- from a case to pictures

    def _paint(self):
        chosen = layers = [name for name, button in self.layers.items() if button.value]
        pictures, captions, scores = [], [], []
        for opened, image, mask, probability in self.contents:
            if mask is None:  # an own file: without a truth, there is its prediction
                layers = ["prediction", *(["probability"] if "probability" in chosen else [])]
            prediction, how = self._predict(opened, probability)
            picture = cases.paint(
                self._background(opened, image), layers, probability=probability,
                prediction=prediction, mask=mask, opacity=self.opacity.value,
            )  # fmt: skip
            pictures.append(cases.encode(picture))
            captions.append(f"{opened.run.folder.name} · {how}")
            scores.append(cases.case_scores(prediction, probability, mask))
        with self.viewer.hold_sync():
            self.viewer.pictures, self.viewer.captions = pictures, captions
            self.viewer.position = f"{self.position.value if self.rows else 0} / {len(self.rows)}"
        self.threshold.disabled = self.tuned.value
        self.legend.value = cases.legend(layers)
        names = [opened.run.folder.name for opened, *_ in self.contents]
        self.scores.value = pd.DataFrame(scores, names).to_html(border=0) if names else ""

    def _background(self, opened, image):
        kind, size = self.background.value, opened.run.config["size"]
        if kind == _BACKGROUNDS[1]:
            return cases.canvas(resize_image(image, (size, size)), smooth=False)
        return cases.canvas(image if kind == _BACKGROUNDS[0] else np.zeros_like(image))

    def _predict(self, opened, probability):
        """Mask of a prediction, and in words how it was cut."""
        if self.tuned.value:
            point = load_operating_point(opened.run)
            how = f"{100 * point.min_area:.2g} % ≥ {point.top_threshold:.2f}, then "
            mask = apply_operating_point(probability[None], point)[0]
            return mask, f"{how}pixels ≥ {point.bottom_threshold:.2f}"
        threshold = self.threshold.value
        return (probability >= threshold).astype(np.uint8), f"pixels ≥ {threshold:.2f}"

    def _say(self, text):
        self.status.value = escape(str(text))

    # -- from the picture area: keys and files

    def _hear(self, content, buffers):
        kind = content.get("kind")
        if kind == "key":
            self._press(content.get("key"))
        elif kind == "upload":
            self._receive(content, buffers)
        elif kind == "too large":
            self._say(_TOO_LARGE)

    def _press(self, key):
        if key in ("ArrowLeft", "ArrowRight"):
            if self.image_id is None:  # back from an own file
                return self._load()
            self.position.value += -1 if key == "ArrowLeft" else 1  # the slider keeps its range
        elif key in ("ArrowUp", "ArrowDown"):
            self.threshold.value += 0.05 if key == "ArrowUp" else -0.05
        elif key == "5":
            self.background.index = (self.background.index + 1) % len(_BACKGROUNDS)
        elif key in ("1", "2", "3", "4"):
            button = list(self.layers.values())[int(key) - 1]
            button.value = not button.value
        return None

    def _receive(self, content, buffers):
        """One piece of a file; with the last one it is predicted."""
        if content.get("first"):
            self.incoming = bytearray()
        if self.incoming is None:  # refused before
            return
        self.incoming += b"".join(buffers)
        if len(self.incoming) > _LARGEST_UPLOAD:
            self.incoming = None
            self._say(_TOO_LARGE)
        elif content.get("last"):
            data, self.incoming = bytes(self.incoming), None
            self._show_file(str(content.get("name")), data)

    def _show_file(self, name, data):
        """Predict an X-ray of the user's with the runs on show; nothing of it is kept on disk."""
        from pneumo_lib.inference.predict import predict  # Keras starts with the first X-ray

        if (suffix := Path(name).suffix.lower()) not in SUFFIXES:
            self._say(f"An X-ray must be a file {', '.join(SUFFIXES)}. Received: {name}")
            return
        self._say(f"{name}: the network is at work …")
        contents = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"upload{suffix}")
            path.write_bytes(data)
            try:
                image = read_image(path)
                for opened in self._shown():
                    (result,) = predict(path, opened.run)
                    if result.error:
                        raise ValueError(result.error)
                    contents.append((opened, image, None, result.probability))
            except ValueError as error:
                self._say(str(error).replace(str(path), name))
                return
        self.contents, self.image_id = contents, None
        self.title.value = escape(f"own file · {name}")
        self._say("")
        self._paint()


def explore(run, beside=None):
    """A panel to look at the cases of a finished run, for JupyterLab and for a Voila page.

    Choose a split, an order of the cases or an id; slide threshold and opacity; switch layers;
    zoom; step with the keyboard; compare with another run; drop in an X-ray of your own. Colours
    are those of the figures, and are told apart with every common colour blindness. Truth,
    prediction and errors are drawn on the pixels that the network sees and is scored on, above
    the X-ray at the resolution of its file. For research and teaching, not a medical device.

    Args:
        run: `Run`, or what `load_run()` takes. All runs beside its folder can be chosen, too.
        beside: another run on the same data to show beside it, or None.

    Returns:
        A widget. As the last line of a cell, it is the panel.

    Raises:
        FileNotFoundError: if there is no finished run, or its prepared data are gone.
        ValueError: if the prepared data changed after the training.
    """
    return Panel(open_run(run), None if beside is None else open_run(beside)).widget
