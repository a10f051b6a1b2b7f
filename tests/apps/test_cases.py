"""The case explorer without a browser: order of cases, pictures, scores, the panel."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest

import pneumo_lib as pl
from pneumo_lib import runs
from pneumo_lib.apps.explorer import cases as explorer
from pneumo_lib.apps.explorer import panel as explorer_panel
from pneumo_lib.apps.explorer.panel import Panel
from pneumo_lib.data.prepare import prepare
from pneumo_lib.data.siim import read_cases
from pneumo_lib.evaluation import metrics
from pneumo_lib.evaluation.image_level import image_level_score
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.inference.prediction_rows import NOTE
from pneumo_lib.plots.style import ORANGE, SKY, VERMILION, YELLOW
from pneumo_lib.runs import open_run

# Lesion and prediction as (first row, last row, first column, last column) of a 32 x 32 image,
# and the probability there. The lesions hold 32 pixels, the small one 16.
LESION, SMALL = (4, 12, 4, 8), (20, 24, 20, 24)
CASES = {
    "half found": ("test", LESION, (4, 8, 4, 8), 0.9),
    "perfect": ("test", LESION, LESION, 0.8),
    "missed small": ("test", SMALL, SMALL, 0.3),
    "missed large": ("test", LESION, LESION, 0.2),
    "spurious": ("test", None, (4, 6, 4, 9), 0.6),
    "<b>healthy</b>": ("test", None, (0, 1, 0, 1), 0.1),
    "seen in training": ("train", LESION, LESION, 1.0),
    "healthy in training": ("train", None, (0, 2, 0, 2), 0.7),
}


def rectangle(place, value, size, dtype="float32"):
    """Image of `size` pixels with `value` in a rectangle, given in 32nds of the size."""
    area = np.zeros((32, 32), dtype)
    if place is not None:
        area[place[0] : place[1], place[2] : place[3]] = value
    return np.kron(area, np.ones((size // 32, size // 32), dtype))


def make_data(home, size):
    """The cases as X-rays of twice the size in the layout of the PNG release, prepared."""
    folder = home / "data" / "release"
    rows = {"train": [], "test": []}
    for index, (name, (split, lesion, _, _)) in enumerate(CASES.items()):
        file = f"{index}_{split}_{int(lesion is not None)}_.png"
        rows[split].append((file, name, int(lesion is not None)))
        image = np.full((2 * size, 2 * size), 10 * index + 50, np.uint8)
        mask = rectangle(lesion, 255, 2 * size, "uint8")
        for kind, pixels in (("png_images", image), ("png_masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / file), pixels)
    for split, table in rows.items():
        table = pd.DataFrame(table, columns=["new_filename", "ImageId", "has_pneumo"])
        table.to_csv(folder / f"stage_1_{split}_images.csv", index=False)
    cases = read_cases(folder)
    cases = cases.assign(split=cases["official_part"], split_scheme="official")
    return prepare(cases, home / "data" / "prepared" / f"cases_{size}_auto-split0", size=size)


def make_run(home, name="phantoms-small", *, size=32):
    """A finished run on `CASES` with known predictions, without training."""
    data = make_data(home, size)
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    found = [CASES[image_id][2:] for image_id in data.cases["image_id"]]
    y_pred = np.stack([rectangle(place, value, size) for place, value in found])
    np.save(folder / "probabilities.npy", np.rint(255 * y_pred).astype(np.uint8))
    cases = data.cases[["image_id", "split", "has_pneumothorax"]]
    counts = metrics.confusion_counts(data.masks, y_pred) | {"epoch": 2}
    last = cases.assign(**counts, image_score=image_level_score(y_pred))
    first = last.assign(tp=0, fp=0, epoch=1)  # of the first milestone, which must not count
    pd.concat([first, last]).to_csv(folder / "scores.csv", index=False)
    history = pd.DataFrame({"epoch": [1, 2], "val_iou": [0.1, 0.2]})
    history.to_csv(folder / "history.csv", index=False)
    config = {
        "data": f"data/prepared/{data.folder.name}", "data_name": "phantoms", "size": size,
        "data_checksum": runs.data_checksum(data), "backbone": "small", "weights": "from scratch",
        "epochs": 2, "seed": 0, "synthetic": True, "split_scheme": "official",
        "leaked_patients": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(own_home):
    return make_run(own_home)


@pytest.fixture
def opened(folder):
    return open_run(folder)


@pytest.fixture
def panel(opened):
    return Panel(opened)


def decoded(jpeg):
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


# -- opening a run


def test_a_run_folder_alone_is_opened_with_its_data_and_the_scores_of_its_last_epoch(opened):
    dice = opened.cases.set_index("image_id")["dice"]
    assert dice["perfect"] == 1
    assert dice["half found"] == pytest.approx(2 * 16 / (2 * 16 + 16))
    assert dice["missed large"] == dice["spurious"] == 0
    assert dice["<b>healthy</b>"] == 1  # both masks empty


def test_a_lesion_that_vanished_at_this_size_counts_as_missed(folder):
    scores = pd.read_csv(folder / "scores.csv")
    scores.loc[scores["image_id"] == "missed small", ["tp", "fp", "fn"]] = 0
    scores.to_csv(folder / "scores.csv", index=False)
    opened = open_run(folder)
    assert opened.cases.set_index("image_id")["dice"]["missed small"] == 0


@pytest.mark.parametrize(
    "options",
    [{"split": "patient", "seed": 1}, {"split": "patient", "fold": "2/3"}, {"phantom_count": 12}],
)
def test_the_call_that_a_run_without_its_data_names_prepares_them_again(
    own_home, png_release, options
):
    source = "phantoms" if "phantom_count" in options else png_release
    data = pl.prepare_data(source, size=32, **options)
    run = pl.train(data, run="trained", backbone="small", epochs=1)
    shutil.rmtree(data.folder)
    with pytest.raises(FileNotFoundError, match=r"trained, without .*Prepare them") as refused:
        open_run(run)
    exec(str(refused.value).split("again: ")[1], {"pl": pl})
    pd.testing.assert_frame_equal(open_run(run).data.cases, data.cases)


def test_an_older_run_without_its_data_names_data_set_and_size(folder):
    change_config(folder, data="data/prepared/gone")
    with pytest.raises(FileNotFoundError, match=r"prepare_data\(data='phantoms', size=32"):
        open_run(folder)


# -- which cases


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("best", "perfect, half found, missed large, missed small"),
        ("worst", "missed large, missed small, half found, perfect"),
        ("missed", "missed large, missed small"),
        ("false positive", "spurious"),
        ("image-level score",
         "half found, perfect, spurious, missed small, missed large, <b>healthy</b>"),
        ("by id", "<b>healthy</b>, half found, missed large, missed small, perfect, spurious"),
    ],
)  # fmt: skip
def test_cases_of_one_split_come_in_the_order_asked_for(opened, order, names):
    rows = explorer.order_cases(opened, order, split="test")
    assert ", ".join(opened.cases["image_id"][rows]) == names


def test_a_random_order_holds_every_case_once_and_follows_the_seed(opened):
    first, second, other = (explorer.order_cases(opened, "random", seed=s) for s in (1, 1, 2))
    assert first == second != other
    assert sorted(first) == sorted(other) == list(range(len(CASES)))


def test_a_split_without_such_a_case_gives_an_empty_list(opened):
    assert explorer.order_cases(opened, "missed", split="train") == []
    assert explorer.order_cases(opened, "image-level score", split="validation") == []


def test_an_unknown_order_is_refused(opened):
    with pytest.raises(ValueError, match=r"`order` must be one of best, worst.*'prettiest'"):
        explorer.order_cases(opened, "prettiest")


# -- which pixels and scores


def test_a_case_is_read_from_its_file_at_full_size(opened):
    image, mask, probability = explorer.read_case(opened, 0)
    assert image.shape == (64, 64)
    assert mask.shape == probability.shape == (32, 32)
    assert probability.max() == pytest.approx(1.0)


def test_a_case_whose_file_is_gone_is_shown_as_it_was_prepared(opened):
    Path(opened.cases["image_path"][0]).unlink()
    image, *_ = explorer.read_case(opened, 0)
    np.testing.assert_array_equal(image, opened.data.images[0])


def test_scores_of_a_case_are_those_one_counts_by_hand():
    mask = np.zeros((10, 10), np.uint8)
    prediction = mask.copy()
    mask[0, :4], prediction[0, 1:7] = 1, 1  # 3 right, 3 false positives, 1 missed
    scores = explorer.case_scores(prediction, 0.75, mask)
    assert scores == {
        "Dice": "0.60", "IoU": "0.43", "Sensitivity": "0.75", "Precision": "0.50",
        "True area": "4.00 %", "Predicted area": "6.00 %", "Image-level score": "0.75",
    }  # fmt: skip


def test_undefined_scores_are_a_dash_and_without_a_truth_there_are_none():
    nothing = np.zeros((4, 4), np.uint8)
    scores = explorer.case_scores(nothing, 0.0, nothing)
    assert (scores["Dice"], scores["Sensitivity"], scores["Precision"]) == ("1.00", "–", "–")
    scores = explorer.case_scores(nothing, 0.0)
    assert list(scores) == ["Predicted area", "Image-level score"]


@pytest.mark.parametrize("shape", [(64, 32), (2048, 1024), (1024, 512)])
def test_a_background_keeps_its_proportions_at_1024_pixels(shape):
    assert explorer.canvas(np.zeros(shape, np.uint8)).shape == (1024, 512)


def test_a_background_that_is_not_smooth_shows_the_pixels_as_they_are():
    image = np.array([[0, 255], [255, 0]], np.uint8)
    assert set(np.unique(explorer.canvas(image, smooth=False))) == {0, 255}
    assert len(np.unique(explorer.canvas(image))) > 100


def paint(layers, **options):
    """A grey picture, 8 times as large as masks of a pixel each: found, missed, false positive."""
    mask = np.array([[1, 1, 0, 0]] * 2, np.uint8)
    prediction = np.array([[1, 0, 1, 0]] * 2, np.uint8)
    options = {"mask": mask, "opacity": 1.0, "probability": np.float32(prediction)} | options
    background = np.full((16, 32), 100, np.uint8)
    return explorer.paint(background, layers, prediction=prediction, **options)


def hexadecimal(pixel):
    return "#{:02X}{:02X}{:02X}".format(*pixel)


def test_found_missed_and_false_positive_have_the_colours_of_the_figures():
    picture = paint(["errors"])
    colours = [hexadecimal(picture[4, column]) for column in (4, 12, 20, 28)]
    assert colours == [SKY, VERMILION, YELLOW, "#646464"]


def mixed(colour, grey, opacity=0.55):
    return opacity * 255 * np.array(matplotlib.colors.to_rgb(colour)) + (1 - opacity) * grey


def test_half_opacity_mixes_colour_and_image():
    pixel = paint(["errors"], opacity=0.5)[4, 4]
    np.testing.assert_allclose(pixel, mixed(SKY, 100, 0.5), atol=1)


def test_without_a_truth_there_are_no_errors_to_colour():
    assert (paint(["errors", "truth"], mask=None) == 100).all()


@pytest.mark.parametrize(("layer", "colour"), [("truth", ORANGE), ("prediction", SKY)])
def test_an_outline_is_drawn_at_the_edge_and_leaves_the_rest(layer, colour):
    area = np.zeros((64, 64), np.uint8)
    area[16:48, 16:48] = 1
    masks = {"mask": area, "prediction": area if layer == "prediction" else 0 * area}
    background = np.full((256, 256), 100, np.uint8)
    picture = explorer.paint(background, [layer], probability=np.float32(area), **masks)
    assert hexadecimal(picture[64, 128]) == colour
    assert (picture[128, 128] == 100).all()
    assert (picture[4, 4] == 100).all()


def test_the_probability_map_is_transparent_at_0_and_the_brightest_magma_at_1():
    picture = paint(["probability"], probability=np.float32([[1, 1, 0, 0]] * 2))
    assert (picture[8, 30] == 100).all()
    brightest = 255 * np.array(matplotlib.colormaps["magma"](1.0)[:3])
    np.testing.assert_allclose(picture[8, 1], brightest, atol=2)


def test_a_picture_survives_its_jpeg():
    picture = paint(["errors"])
    assert np.abs(decoded(explorer.encode(picture)).astype(int) - picture).mean() < 3


def test_the_legend_names_the_colours_of_the_layers_on_show():
    colours = [colour in explorer.legend(["errors"]) for colour in (SKY, VERMILION, ORANGE)]
    assert colours == [True, True, False]
    assert "probability 0" in explorer.legend(["probability"])
    assert explorer.legend([]) == ""


# -- the panel


def assert_lesion_is(panel, colour):
    (jpeg,) = panel.viewer.pictures
    np.testing.assert_allclose(decoded(jpeg)[256, 192], mixed(colour, 60), atol=12)  # JPEG


def test_the_panel_opens_with_the_best_case_of_the_test_split(panel):
    assert "test · pneumothorax · perfect" in panel.title.value
    assert panel.viewer.position == "1 / 4"
    assert_lesion_is(panel, SKY)


def test_moving_the_threshold_repaints_and_scores_again(panel):
    assert "<td>1.00</td>" in panel.scores.value
    panel.threshold.value = 0.85
    assert_lesion_is(panel, VERMILION)
    assert "<td>1.00</td>" not in panel.scores.value
    assert panel.viewer.captions == ["phantoms-small · pixels ≥ 0.85"]


def test_the_operating_point_of_the_run_cuts_the_mask_when_it_is_asked_for(panel, folder):
    point = OperatingPoint(top_threshold=0.75, min_area=0.5, bottom_threshold=0.1)
    (folder / "operating_point.json").write_text(json.dumps(point._asdict()))
    panel.tuned.value = True  # no half of the image is that sure: the mask is empty
    assert_lesion_is(panel, VERMILION)
    assert panel.viewer.captions == ["phantoms-small · 50 % ≥ 0.75, then pixels ≥ 0.10"]
    assert panel.threshold.disabled


def press(panel, *keys):
    for key in keys:
        panel._receive({"kind": "key", "key": key}, [])


def test_arrow_keys_step_through_the_cases_and_stop_at_both_ends(panel):
    press(panel, "ArrowRight")
    assert "half found" in panel.title.value
    press(panel, "ArrowLeft", "ArrowLeft")
    assert "perfect" in panel.title.value
    press(panel, *["ArrowRight"] * 9)
    assert panel.viewer.position == "4 / 4"


def test_other_keys_move_the_threshold_and_switch_layers_and_image(panel):
    press(panel, "ArrowUp", "ArrowUp", "ArrowDown")
    assert panel.threshold.value == pytest.approx(0.55)
    press(panel, "1", "3", "5")
    assert [button.value for button in panel.layers.values()] == [True, False, False, False]
    assert panel.background.value == "as the network sees it"
    press(panel, "q", None)  # nothing


def test_an_order_without_cases_shows_a_message_and_no_picture(panel):
    panel.split.value, panel.order.value = "train", "missed"
    assert panel.viewer.pictures == []
    assert panel.viewer.position == "0 / 0"
    assert "No case" in panel.status.value
    press(panel, "ArrowRight")
    panel.order.value = "best"
    assert "seen in training" in panel.title.value


def test_a_case_is_found_by_a_part_of_its_id(panel):
    panel.find.value = "in tra"
    assert "seen in training" in panel.title.value or "healthy in training" in panel.title.value
    panel.find.value = "seen.in"  # a dot is a dot: ids contain many
    assert panel.status.value == "No id of this run contains: seen.in"
    panel.find.value = "<i>"
    assert panel.status.value == "No id of this run contains: &lt;i&gt;"


def test_markup_in_an_id_stays_text(panel):
    panel.find.value = "<b>healthy"
    assert "&lt;b&gt;healthy&lt;/b&gt;" in panel.title.value
    assert "<b>" not in panel.title.value


def test_two_runs_stand_side_by_side_on_the_same_case(own_home, opened):
    other = open_run(make_run(own_home, "<i>other"))
    panel = Panel(opened, other)
    press(panel, "ArrowRight")
    names = [caption.split(" · ")[0] for caption in panel.viewer.captions]
    assert names == ["phantoms-small", "<i>other"]
    assert panel.viewer.pictures[0] == panel.viewer.pictures[1]
    assert "&lt;i&gt;other" in panel.scores.value
    panel.beside.value = ""
    assert len(panel.viewer.pictures) == 1
    assert "half found" in panel.title.value  # the case stays


def test_a_run_without_the_case_is_named(own_home, opened):
    other = open_run(make_run(own_home, "other"))
    other.cases["image_id"] += " of another data set"
    panel = Panel(opened, other)
    assert len(panel.viewer.pictures) == 1
    assert panel.status.value == "other does not contain this case."


def test_choosing_a_run_without_its_data_shows_the_error_and_goes_back(own_home, opened):
    other = make_run(own_home, "other")
    change_config(other, data="data/prepared/gone_32_auto-split0")
    panel = Panel(opened)
    panel.run.value = other
    assert panel.run.value == opened.run.folder
    assert "Prepare them again" in panel.status.value
    assert "perfect" in panel.title.value


def test_the_panel_shows_that_it_is_no_medical_device(panel):
    assert f"For {NOTE}." in panel.widget.children[0].children[-1].value


def test_the_panel_starts_without_tensorflow(folder):
    code = f"import sys, pneumo_lib as pl; pl.explore({str(folder)!r}, beside={str(folder)!r}); "
    line = [sys.executable, "-c", f"{code}print('tensorflow' in sys.modules)"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# -- uploaded files


def upload(panel, name, data, *, piece=1000):
    for start in range(0, max(1, len(data)), piece):
        content = {"kind": "upload", "name": name, "first": start == 0}
        content["last"] = start + piece >= len(data)
        panel._receive(content, [memoryview(data[start : start + piece])])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A really trained run on the same cases."""
    from pneumo_lib.training.train import train

    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMO_HOME", str(home))
        run = train(make_data(home, 32), run="trained", backbone="small", epochs=1, batch_size=2)
        yield open_run(run)


def test_a_file_uploaded_in_pieces_is_predicted_as_the_run_predicts_it(trained):
    panel = Panel(trained)
    path = Path(trained.cases["image_path"][3])
    upload(panel, "mine <1>.PNG", path.read_bytes(), piece=20)
    assert panel.title.value == "uploaded file · mine &lt;1&gt;.PNG"
    assert panel.status.value == ""
    ((_, image, mask, probability, _),) = panel.contents
    assert image.shape == (64, 64)
    assert mask is None
    np.testing.assert_allclose(probability, trained.probabilities[3] / 255, atol=0.5 / 255 + 1e-4)
    assert "prediction" in panel.legend.value
    assert "missed" not in panel.legend.value
    press(panel, "ArrowRight")  # back to the cases, where one left them
    assert panel.viewer.position.startswith("1 /")
    assert panel.image_id is not None


def test_an_uploaded_dicom_file_is_predicted(trained, siim_dicom):
    panel = Panel(trained)
    path = next(siim_dicom.rglob("*.dcm"))
    upload(panel, "chest.dcm", path.read_bytes(), piece=1 << 20)
    assert panel.status.value == ""
    assert panel.contents[0][1].shape == (1024, 1024)


def test_a_file_that_cannot_be_read_has_its_own_name_in_the_error(panel):
    upload(panel, "<script>.png", b"no image")
    assert "&lt;script&gt;.png" in panel.status.value
    assert "tmp" not in panel.status.value
    assert "perfect" in panel.title.value


@pytest.mark.parametrize("name", ["notes.txt", "../../evil", ".png", ""])
def test_a_file_of_another_kind_is_refused(panel, name):
    upload(panel, name, b"text")
    assert "An X-ray must be a file .png" in panel.status.value


def test_a_file_beyond_the_limit_is_dropped_while_it_comes(panel, monkeypatch):
    monkeypatch.setattr(explorer_panel, "_LARGEST_UPLOAD", 2500)
    upload(panel, "large.png", bytes(10_000))
    assert panel.incoming is None
    assert "may hold 64 MiB" in panel.status.value
    panel._receive({"kind": "too large", "name": "large.png"}, [])
    assert "may hold 64 MiB" in panel.status.value
