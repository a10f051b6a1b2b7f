"""Widgets of the case explorer: the picture area, the controls and what they repaint."""

import tempfile
from html import escape
from pathlib import Path

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import traitlets

from pneumo_lib.apps.explorer import cases
from pneumo_lib.data.files import SUFFIXES
from pneumo_lib.data.images import read_image, resize_image
from pneumo_lib.evaluation.operating_point import apply_operating_point
from pneumo_lib.inference.prediction_rows import NOTE
from pneumo_lib.runs import caveats, load_operating_point, open_run

_LARGEST_UPLOAD = 64 * 2**20  # bytes, twice an X-ray of 4000 x 4000 pixels at 16 bits
_TOO_LARGE = f"An X-ray file may hold {_LARGEST_UPLOAD >> 20} MiB. Received: a larger one."
_HINT = (
    "Keys, with the pointer on the picture: <b>← →</b> case, <b>↑ ↓</b> threshold, "
    "<b>1–4</b> layers, <b>5</b> image, <b>+ − 0</b> zoom. Double click and drag to look closer. "
    f"<b>For {NOTE}.</b>"
)
_BACKGROUNDS = ("X-ray", "as the network sees it", "none")


class Viewer(anywidget.AnyWidget):
    """Picture area with one zoom for all pictures, keys and file upload: `explorer.js`."""

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)  # JPEG
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)  # one each
    position = traitlets.Unicode().tag(sync=True)
    suffixes = traitlets.List(list(SUFFIXES)).tag(sync=True)
    max_bytes = traitlets.Int(_LARGEST_UPLOAD).tag(sync=True)


class Panel:
    """The explorer of one `OpenRun` or two as `widget`, with its state."""

    def __init__(self, opened, beside=None):
        self.open = {one.run.folder: one for one in (opened, beside) if one}
        self.rows = []  # of the listed cases
        self.image_id = None  # of the current case
        self.contents = []  # shown: (OpenRun, image, mask, probability, score), one or two
        self.incoming = None  # bytes of a file during its upload
        self._make_controls(opened, beside)
        self.widget = self._arrange()
        self._observe()
        self._list_cases()

    # -- controls

    def _make_controls(self, opened, beside):
        folders = {path.parent for path in opened.run.folder.parent.glob("*/config.json")}
        folders = sorted(f for f in folders | set(self.open) if ".old-" not in f.name)
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
        self.find = widgets.Text(description="Find", continuous_update=False)
        self.find.placeholder = "part of an id, then Enter"
        self.threshold = slide(0.5, min=0.01, max=1, step=0.01, description="Threshold")
        self.tuned = widgets.Checkbox(description="at the run's operating point", indent=True)
        self.opacity = slide(0.55, min=0, max=1, step=0.05, description="Opacity")
        self.background = drop(options=_BACKGROUNDS, description="Image")
        self.layers = {
            name: widgets.ToggleButton(name == "errors", description=name.capitalize())
            for name in cases.LAYERS
        }
        self.viewer = Viewer()
        for name in ("title", "scores", "legend", "status", "note", "hint"):
            setattr(self, name, widgets.HTML().add_class(f"pneumo-{name}"))
        self.hint.value = _HINT

    def _arrange(self):
        groups = (
            (self.run, self.beside, self.note),
            (self.split, self.order, self.position, self.find),
            (self.background, widgets.Box(list(self.layers.values())), self.opacity),
            (self.threshold, self.tuned, self.status),
        )
        picture = widgets.VBox([self.title, self.viewer, self.legend, self.scores, self.hint])
        controls = widgets.VBox([widgets.VBox(group) for group in groups])
        picture.add_class("pneumo-picture")
        controls.add_class("pneumo-controls")
        return widgets.Box([picture, controls]).add_class("pneumo-explorer")

    def _observe(self):
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
        self.viewer.on_msg(lambda _viewer, content, buffers: self._receive(content, buffers))

    def _show_status(self, text):
        self.status.value = escape(str(text))

    # -- from a choice to a case

    def _shown_runs(self):
        """The one or two open runs that are chosen."""
        return [self.open[folder] for folder in (self.run.value, self.beside.value) if folder]

    def _choose_run(self, change):
        folder = change["new"]
        try:
            if folder and folder not in self.open:
                self.open[folder] = open_run(folder)
        except (FileNotFoundError, ValueError) as error:
            change["owner"].value = change["old"]
            self._show_status(error)
        else:
            self._list_cases(self.image_id)

    def _list_cases(self, image_id=None):
        """List the cases of the chosen split and order; show `image_id`, or else the first."""
        opened = self._shown_runs()[0]
        self.note.value = escape(caveats([opened.run]))
        self.rows = cases.order_cases(opened, self.order.value, split=self.split.value)
        ids = opened.cases["image_id"][self.rows].tolist()
        place = ids.index(image_id) + 1 if image_id in ids else 1
        moves = self.position.value != place
        with self.position.hold_trait_notifications():
            self.position.max = max(1, len(ids))
            self.position.value = place
        if not moves:  # else the slider's observer has loaded the case
            self._load()

    def _find(self, text):
        """Show the first case whose id contains the text."""
        ids = self._shown_runs()[0].cases["image_id"]
        found = ids[ids.str.contains(text, regex=False)]
        if found.empty:
            self._show_status(f"No id of this run contains: {text}")
        elif text:
            self.split.value, self.order.value = "all", "by id"
            self._list_cases(found.iloc[0])

    def _load(self):
        """Read the current case, once for all its repaints."""
        self.contents, self.image_id, self.title.value = [], None, ""
        self._show_status("" if self.rows else "No case of this split meets the condition.")
        if self.rows:
            runs = self._shown_runs()
            case = runs[0].cases.loc[self.rows[self.position.value - 1]]
            self.image_id = case["image_id"]
            label = "pneumothorax" if case["has_pneumothorax"] else "no pneumothorax"
            self.title.value = escape(f"{case['split']} · {label} · {self.image_id}")
            for opened in runs:
                rows = np.flatnonzero(opened.cases["image_id"] == self.image_id)
                if len(rows):
                    score = opened.cases["image_score"][rows[0]]
                    self.contents.append((opened, *cases.read_case(opened, rows[0]), score))
                else:
                    self._show_status(f"{opened.run.folder.name} does not contain this case.")
        self._paint()

    # -- from a case to pictures

    def _paint(self):
        chosen = layers = [name for name, button in self.layers.items() if button.value]
        pictures, captions, names, scores = [], [], [], []
        for opened, image, mask, probability, score in self.contents:
            if mask is None:  # an uploaded file has no truth
                layers = ["prediction", *(["probability"] if "probability" in chosen else [])]
            prediction, rule = self._predict(opened, probability, score)
            picture = cases.paint(
                self._background(opened, image), layers, probability=probability,
                prediction=prediction, mask=mask, opacity=self.opacity.value,
            )  # fmt: skip
            pictures.append(cases.encode(picture))
            names.append(opened.run.folder.name)
            captions.append(f"{names[-1]} · {rule}")
            scores.append(cases.case_scores(prediction, score, mask))
        with self.viewer.hold_sync():
            self.viewer.pictures, self.viewer.captions = pictures, captions
            self.viewer.position = f"{self.position.value if self.rows else 0} / {len(self.rows)}"
        self.threshold.disabled = self.tuned.value
        self.legend.value = cases.legend(layers)
        self.scores.value = pd.DataFrame(scores, names).to_html(border=0) if names else ""

    def _background(self, opened, image):
        kind, size = self.background.value, opened.run.config["size"]
        if kind == _BACKGROUNDS[1]:
            return cases.canvas(resize_image(image, (size, size)), smooth=False)
        return cases.canvas(image if kind == _BACKGROUNDS[0] else np.zeros_like(image))

    def _predict(self, opened, probability, score):
        """Mask of a prediction, and the rule that made it as text."""
        if self.tuned.value:
            point = load_operating_point(opened.run)
            rule = f"{100 * point.min_area:.2g} % ≥ {point.top_threshold:.2f}, then "
            rule = f"score ≥ {point.min_score:.2f}, then " if point.min_score else rule
            mask = apply_operating_point(probability[None], point, scores=[score])[0]
            return mask, f"{rule}pixels ≥ {point.bottom_threshold:.2f}"
        threshold = self.threshold.value
        return (probability >= threshold).astype(np.uint8), f"pixels ≥ {threshold:.2f}"

    # -- messages of the picture area: keys and files

    def _receive(self, content, buffers):
        kind = content.get("kind")
        if kind == "key":
            self._press(content.get("key"))
        elif kind == "upload":
            self._receive_file(content, buffers)
        elif kind == "too large":
            self._show_status(_TOO_LARGE)

    def _press(self, key):
        step = {"ArrowLeft": -1, "ArrowRight": 1}.get(key)
        if step and self.image_id is None:
            self._load()  # back from an uploaded file
        elif step:
            self.position.value += step  # the slider keeps its range
        elif key in ("ArrowUp", "ArrowDown"):
            self.threshold.value += 0.05 if key == "ArrowUp" else -0.05
        elif key == "5":
            self.background.index = (self.background.index + 1) % len(_BACKGROUNDS)
        elif key in ("1", "2", "3", "4"):
            button = list(self.layers.values())[int(key) - 1]
            button.value = not button.value

    def _receive_file(self, content, buffers):
        """Add a piece of a file; the last one starts the prediction."""
        if content.get("first"):
            self.incoming = bytearray()
        if self.incoming is None:  # the file was refused
            return
        self.incoming += b"".join(buffers)
        if len(self.incoming) > _LARGEST_UPLOAD:
            self.incoming = None
            self._show_status(_TOO_LARGE)
        elif content.get("last"):
            data, self.incoming = bytes(self.incoming), None
            self._show_file(str(content.get("name")), data)

    def _show_file(self, name, data):
        """Predict an uploaded X-ray with the chosen runs; nothing stays on disk."""
        from pneumo_lib.inference.predict import predict  # loads Keras

        if (suffix := Path(name).suffix.lower()) not in SUFFIXES:
            self._show_status(f"An X-ray must be a file {', '.join(SUFFIXES)}. Received: {name}")
            return
        self._show_status(f"{name}: predicting …")
        contents = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"upload{suffix}")
            path.write_bytes(data)
            try:
                image = read_image(path)
                for opened in self._shown_runs():
                    (result,) = predict(path, opened.run)
                    if result.error:
                        raise ValueError(result.error)
                    contents.append((opened, image, None, result.probability, result.score))
            except ValueError as error:
                self._show_status(str(error).replace(str(path), name))
                return
        self.contents, self.image_id = contents, None
        self.title.value = escape(f"uploaded file · {name}")
        self._show_status("")
        self._paint()


def explore(run, beside=None):
    """Widget to look at the cases of a finished run, the last line of a cell or a Voila page.

    Choose a split, an order of the cases or an id; move threshold and opacity; switch layers;
    zoom; step with the keyboard; compare with another run; drop in an X-ray of your own. Colours
    are those of the figures. Truth, prediction and errors are drawn at the resolution of the
    network, above the X-ray at the resolution of its file. Not a medical device.

    Args:
        run: `Run`, or what `load_run()` takes. The panel offers all runs of its folder.
        beside: another run on the same data to compare with, or None.

    Raises:
        FileNotFoundError, ValueError: as `open_run()`.
    """
    return Panel(open_run(run), None if beside is None else open_run(beside)).widget
