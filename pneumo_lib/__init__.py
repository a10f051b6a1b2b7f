"""Chest X-ray pneumothorax segmentation with fully convolutional networks.

`import pneumo_lib as pl` is all a notebook needs. Every public name below is loaded from its
module the first time it is used: importing the package starts nothing and stays fast, and
Keras is imported only when a network is built (or asked for: `pl.keras`), without TensorFlow's
start-up messages.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_MODULE_OF = {
    name: module
    for module, names in {
        "archive": "predict_archive",
        "averaging": "average_runs",
        "backbones": "build_backbone preprocess",
        "boundary": "boundary_scores prepared_spacing",
        "comparison": "paired_difference",
        "config": "TrainingConfig",
        "devices": "device_name",
        "dataset": "read_cases read_image read_mask",
        "evidence": "expected_calibration_error image_level_scores reliability_table",
        "doctor": "examine",
        "explorer": "explore",
        "export": "export_network",
        "experiments": "read_experiments run_experiments scores_at_operating_point",
        "fcn": "build_fcn build_small_fcn layer_table split_fcn unfreeze",
        "inference": "predict",
        "prediction_files": "predict_files",
        "metrics": "as_logged_dice as_logged_mean_iou confusion_counts image_evidence",
        "operating_point": "OperatingPoint apply_operating_point choose_operating_point",
        "paths": "figures_folder project_path",
        "phantom": "draw_phantom make_phantoms",
        "preparation": "Prepared find_cases load_prepared prepare prepare_data",
        "receptive_fields": "convolution_depth receptive_field",
        "related_work": "build_related_fcn",
        "quiet": "keras",
        "rle": "rle_decode rle_encode",
        "submission": "write_submission",
        "verify": "verify_run",
        "splits": "leaked_patients split_cases",
        "runs": "Run caveats find_runs load_operating_point load_run log_line open_run"
        " runs_to_compare",
        "sweep": "run_sweep",
        "sweep_results": "sweep_chart",
        "tables": "format_table score_table with_groups",
        "training": "train",
    }.items()
    for name in names.split()
}
_MODULES = (
    "decoders",
    "diagrams",
    "experiment_figures",
    "explorer",
    "fcn",
    "figures",
    "layers",
    "losses",
    "metric_figures",
    "metrics",
    "saturation",
    "tables",
)
__all__ = sorted([*_MODULE_OF, *_MODULES])


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return _import_module(f"{__name__}.{name}")
    return getattr(_import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__():
    return __all__
