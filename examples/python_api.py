"""segpipe from Python, on the bundled scenes: label an array, run over a folder, and look at the result.

python examples/python_api.py [OUT]
"""

import sys
from pathlib import Path

import numpy as np
import rasterio

import segpipe

HERE = Path(__file__).parent


def label_an_array(model_file: Path, scene_file: Path) -> None:
    """Load a model once, and label arrays of any size in memory."""
    model = segpipe.load(model_file)
    print(model)
    with rasterio.open(scene_file) as scene:
        pixels, valid = scene.read(), scene.dataset_mask() > 0  # (channels, rows, cols), (rows, cols)
    labels = model.predict(pixels, valid, confidence=True)
    print(labels)
    ids, counts = np.unique(labels.array[labels.valid], return_counts=True)
    for class_id, count in zip(ids, counts, strict=True):
        print(f"  {labels.classes[int(class_id)]}: {count:,} pixels")
    assert labels.confidence is not None
    print(f"  mean probability of the labels: {labels.confidence[labels.valid].mean() / 254:.3f}")


def run_over_a_folder(model_file: Path, scenes: Path, output: Path) -> None:
    """The same as ``segpipe run``; a second call does only what is missing."""
    result = segpipe.run(scenes, model_file, output, executor="serial")
    for case, reason in result.failed.items():
        print(f"failed {case}: {reason}")
    for name, total in result.totals.items():
        print(f"  {name}: {total.area:,.1f} {total.unit}")


def look_at_masks(output: Path) -> None:
    """The result of a run from its folder, now or later; a mask as xarray, where that is installed."""
    result = segpipe.open_run(output)
    for case, record in result.records.items():
        print(f"{case}: {record.windows} windows in {record.seconds} s")
        print(f"  {result.open(case)}")
    try:
        print(result.open(next(iter(result.records))).to_xarray())
    except segpipe.InstallationError as error:
        print(error)


def main(output: Path) -> None:
    model_file, scenes = HERE / "crops.onnx", HERE / "scenes"
    label_an_array(model_file, scenes / "danube.tif")
    run_over_a_folder(model_file, scenes, output)
    look_at_masks(output)


if __name__ == "__main__":
    main(Path(*sys.argv[1:] or ["segpipe-out"]))
