"""ONNX files in the forms that people have, made small and seeded, through ``segpipe export attach`` and ``segpipe run``.

    python benchmarks/forms.py --output docs/forms.md

Labels are compared with those of ONNX Runtime on the same windows. ``tests/system/test_model_forms.py`` runs the same forms.
"""

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

ROOT = Path(__file__).parents[1]
TILE, OVERLAP, ALIGN = (64, 64), (16, 16), (4, 4)
LEAST = (150, 203)
"""Rows and columns of the raster; more for tiles that it would not exceed."""

FIXED = (300, 513, 518)
"""Tile sizes that graphs fix, as DeepLab's 513 and 518 of DINOv2."""

PARTS = {1: 1, 2: 2, 7: 2}
"""Worker processes for each number of parts."""

PAGE = """# Forms of ONNX files

Made by `python benchmarks/forms.py --output docs/forms.md`: a small seeded network of each form gets a contract with
`segpipe export attach` and labels a raster of at least 150 x 203 pixels with `--blend crop`, whose labels ONNX Runtime must
give on the same windows. *Same bytes* is for 1, 2 and 7 parts in 1, 2 and 2 processes. The keys are those of the
[contract](contract.md) that the form needs beside channels, scaling, tile and classes; the lines that segpipe prints for a
file without a contract contain them.

| form | input | output | keys | equal labels | same bytes |
| --- | --- | --- | --- | --- | --- |
"""


def write(path: Path, pixels: NDArray[np.uint8]) -> None:
    count, rows, cols = pixels.shape
    kind = {"driver": "GTiff", "dtype": "uint8", "crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 10, 10)}
    with rasterio.open(path, "w", count=count, height=rows, width=cols, **kind) as dataset:
        dataset.write(pixels)


def toml(values: dict[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key != "classes"]
    for one in values["classes"]:
        lines += ["[[classes]]", *(f"{key} = {json.dumps(value)}" for key, value in one.items())]
    return "\n".join(lines)


def measure(name: str, form: Any, folder: Path) -> str:
    """A line of the table."""
    from model_forms import make, of_windows  # type: ignore[import-not-found] # in tests/
    from networks import contract  # type: ignore[import-not-found] # in tests/

    import segpipe
    from segpipe.export.attach import attach

    tile = TILE if isinstance(form.sizes[0], str) else tuple(form.sizes)
    shape = [max(least, 3 * size // 2) for least, size in zip(LEAST, tile, strict=True)]
    pixels = np.random.default_rng(5).integers(0, 256, (3, *shape), dtype=np.uint8)
    write(folder / "a.tif", pixels)
    keys = form.keys
    values = contract(3, form.classes, **{"tile": [*tile], "overlap": [*OVERLAP], "align": 4} | keys)
    if form.inside is not None:
        values["scale"] = 1.0
    model = make(folder / "bare.onnx", form)
    (folder / "c.toml").write_text(toml(values))
    (folder / "m.onnx").unlink(missing_ok=True)
    attach(model, folder / "c.toml", folder / "m.onnx")
    masks = []
    for parts, workers in PARTS.items():
        out = folder / f"out{parts}"
        where: dict[str, Any] = {"parts": parts, "workers": workers, "device": "cpu"}
        segpipe.run(folder / "a.tif", folder / "m.onnx", out, blend="crop", overwrite=True, **where)
        masks.append((out / "a.tif").read_bytes())
    factor = np.float32(1 if form.inside is not None else 1 / 255)
    truth = of_windows(
        model, pixels, form, tile=tile, overlap=OVERLAP, align=ALIGN, scale=lambda x: x.astype(np.float32) * factor
    )
    with rasterio.open(folder / "out1" / "a.tif") as mask:
        found = mask.read()
    share = (found == form.labels(truth)).mean()
    said = ", ".join(f'`{key} = "{value}"`' for key, value in keys.items())
    same = "yes" if len(set(masks)) == 1 else "no"
    return f"| {name} | {form.layout} {kind(form.dtype)} | {ending(form)} | {said} | {100 * share:.3f} % | {same} |"


def kind(dtype: int) -> str:
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(dtype))


def ending(form: Any) -> str:
    axes = "N, h, w" if "flat" in form.ending else form.out_layout or form.layout
    return f"{axes} {form.ending.removesuffix(' flat')}"


def main() -> None:
    """Measure, and write the page."""
    sys.path.insert(0, str(ROOT / "tests"))
    from machine import machine
    from model_forms import FORMS, Form

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = []
    sizes = {f"a fixed tile of {size}": Form(sizes=(size, size)) for size in FIXED}
    for name, form in (FORMS | sizes).items():
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(name, form, Path(folder)))
        print(lines[-1], flush=True)
    if options.output:
        end = f"\n{machine()}. {datetime.now(UTC).date()}.\n"
        options.output.write_text(PAGE + "\n".join(lines) + "\n" + end, encoding="utf-8")


if __name__ == "__main__":
    main()
