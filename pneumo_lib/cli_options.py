"""What the commands of `pneumo` take, with an example of each."""

import argparse

import pneumo_lib as pl

DISCLAIMER = "For research and teaching, not a medical device."


def parser():
    """The `ArgumentParser` of the whole command."""
    whole = argparse.ArgumentParser(
        prog="pneumo",
        description="Chest X-ray pneumothorax segmentation with FCNs.",
        epilog=f"`pneumo COMMAND --help` says more, with an example. {DISCLAIMER}",
    )
    whole.add_argument("--version", action="version", version=f"pneumo {pl.__version__}")
    whole.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        *(_report, _sweep, _slides, _fetch, _phantoms, _predict, _submit),
        *(_average, _export, _verify, _doctor),
    ):
        add(commands)
    return whole


def _report(commands):
    command = _add(
        commands, "report", "run all notebooks and write runs/report/index.html",
        "pneumo report --data data/siim --params params/siim.yaml --backbones vgg16 small",
    )  # fmt: skip
    command.add_argument("--data", metavar="FOLDER", help="a data set instead of the phantoms")
    command.add_argument("--params", metavar="YAML", help="parameters, such as params/siim.yaml")
    command.add_argument("--weights", help="imagenet, auto, or a file of backbone weights")
    command.add_argument("--backbones", nargs="+", metavar="NAME", help="networks to train")
    _add_settings(command)
    command.add_argument("--all", action="store_true", help="also the notebooks after 06_results")


def _sweep(commands):
    command = _add(
        commands, "sweep", "train a grid of networks on several processes or machines",
        "pneumo sweep params/sweep.yaml --workers 2",
        "Writes runs/sweep-NAME/: table.csv, summary.csv, a figure and the executed notebooks. "
        "Called again, it trains only what is not finished. Exit status 1 if any run failed. "
        "docs/clusters.md shows SLURM and Kubernetes.",
    )  # fmt: skip
    command.add_argument("params", metavar="YAML", help="grid of runs, such as params/sweep.yaml")
    _add_settings(command)
    _add_scheduler(
        command, default="local", help="tcp://HOST:PORT of a Dask scheduler; default: local"
    )
    command.add_argument(
        "--memory", metavar="SIZE", help="of one worker with its run, such as 4GB; more ends it"
    )
    command.add_argument(
        "--resources", nargs="+", default=[], metavar="NAME=N",
        help="what one run takes of what workers have, such as GPU=1",
    )  # fmt: skip
    command.add_argument(
        "--retries", type=int, default=1, metavar="N",
        help="how often a run that failed is tried again; default: 1",
    )  # fmt: skip


def _slides(commands):
    command = _add(
        commands, "slides", "write a finished report as slides, PowerPoint and HTML",
        "pneumo slides --data data/siim",
    )  # fmt: skip
    command.add_argument("--data", metavar="FOLDER", default="phantoms", help="default: phantoms")


def _fetch(commands):
    command = _add(
        commands, "fetch", "download the SIIM-ACR data set from Kaggle",
        "pneumo fetch siim --to data/siim",
    )  # fmt: skip
    command.add_argument("data", choices=["siim"])
    command.add_argument("--to", required=True, metavar="FOLDER")
    command.add_argument("--layout", choices=["png", "dicom"], default="png", help="default: png")


def _phantoms(commands):
    command = _add(
        commands, "phantoms", "draw synthetic chest X-rays",
        "pneumo phantoms --to data/few --count 20 --size 1024",
    )  # fmt: skip
    command.add_argument("--to", required=True, metavar="FOLDER")
    command.add_argument("--count", type=int, default=800, help="X-rays; default: 800")
    command.add_argument("--size", type=int, default=256, help="pixels a side; default: 256")
    command.add_argument("--seed", type=int, default=0, help="default: 0")


def _predict(commands):
    command = _add(
        commands, "predict", "outline pneumothorax on new X-rays with a trained network",
        "pneumo predict xrays/ one.dcm --run runs/phantoms-small-128 --out predictions",
        "Reads PNG, JPEG and DICOM. Writes predictions.csv, and for each file a probability map, "
        "a mask at its own size and an overlay. Called again, it predicts only what is new. "
        "Exit status 1 if any file failed. With --scheduler, an archive of any size: one folder, "
        "one list of files (@list.txt) or one URL (s3://bucket/xrays), read by many processes; "
        "--out, which may be a URL too, then holds Parquet files with the masks as run lengths.",
    )  # fmt: skip
    command.add_argument("files", nargs="+", metavar="FILE_OR_FOLDER", help="folders are searched")
    _add_run(command)
    command.add_argument(
        "--out", required=True, metavar="FOLDER", help="new, or of an earlier call"
    )
    _add_threshold(command)
    command.add_argument(
        "--dicom-seg", action="store_true", help="also write a DICOM SEG object for each DICOM file"
    )
    _add_scheduler(command, help="'local', or tcp://HOST:PORT of a running Dask scheduler")


def _submit(commands):
    command = _add(
        commands, "submit", "write the SIIM-ACR submission table",
        "pneumo submit --run runs/siim-small-128 --images data/siim --to submission.csv",
        "ImageId,EncodedPixels with masks of 1024 x 1024 pixels, -1 where nothing was found. "
        "Exit status 1 if an image could not be read; it then has -1.",
    )  # fmt: skip
    _add_run(command)
    command.add_argument(
        "--images",
        required=True,
        metavar="FOLDER",
        help="a data set, or files <ImageId>.dcm or .png",
    )
    command.add_argument("--to", required=True, metavar="CSV")
    command.add_argument(
        "--part", choices=["test", "train", "all"], default="test",
        help="official part of a data set; default: test",
    )  # fmt: skip
    command.add_argument(
        "--rows", choices=["image", "region"], default="image",
        help="one row for each image, or for each connected region; default: image",
    )  # fmt: skip
    _add_threshold(command)


def _export(commands):
    command = _add(
        commands, "export", "write a trained network for other programs",
        "pneumo export --run runs/phantoms-small-128 --format onnx --to network.onnx",
        "The network takes grey images and includes their preprocessing. It is compared with "
        "Keras on synthetic X-rays before it gets its name.",
    )  # fmt: skip
    _add_run(command)
    command.add_argument(
        "--format", choices=["onnx", "savedmodel", "litert"], default="onnx", help="default: onnx"
    )
    command.add_argument("--to", required=True, metavar="PATH", help="must not exist yet")


def _average(commands):
    command = _add(
        commands, "average", "make one network of several: the mean of their probabilities",
        "pneumo average siim-s0 siim-s1 siim-s2 --to siim-mean",
        "Networks of one kind, trained on the same data from different seeds.",
    )  # fmt: skip
    command.add_argument("runs", nargs="+", metavar="RUN", help="as for pneumo verify")
    command.add_argument("--to", required=True, metavar="NAME", help="of the new run, in runs/")


def _verify(commands):
    command = _add(
        commands, "verify", "score a trained network again and compare with its scores.csv",
        "pneumo verify phantoms-small-128", "Exit status 1 if they do not match.",
    )  # fmt: skip
    command.add_argument(
        "run", metavar="RUN", help="folder of a trained network, or its name in runs/"
    )


def _doctor(commands):
    _add(
        commands, "doctor", "say what is in place: versions, devices, weights, data, disk",
        "pneumo doctor", "Downloads nothing. Exit status 1 if something must be mended.",
    )  # fmt: skip


def _add_threshold(command):
    command.add_argument(
        "--threshold", type=float, metavar="P",
        help="probability from which a pixel counts, 0 to 1; default: the run's operating point",
    )  # fmt: skip


def _add_settings(command):
    command.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="one notebook parameter, such as --set epochs 50; may be repeated",
    )  # fmt: skip


def _add_scheduler(command, **settings):
    command.add_argument("--scheduler", metavar="ADDRESS", **settings)
    command.add_argument(
        "--workers", type=int, metavar="N",
        help="processes of --scheduler local, which share the cores; default: one for two cores",
    )  # fmt: skip


def _add_run(command):
    command.add_argument(
        "--run",
        required=True,
        metavar="RUN",
        help="folder of a trained network, or its name in runs/",
    )


def _add(commands, name, text, example, more=""):
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. {more}",
        epilog=f"Example: {example}",
    )
