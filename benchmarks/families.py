"""Every family that ``segpipe export`` knows, small and with seeded random weights: exported at each precision, as a table.

    python benchmarks/families.py --output docs/export.md

The families are in ``benchmarks/catalogue``, which ``tests/slow/test_families.py`` runs, too. Work files go to
``benchmarks/scratch/families``.
"""

import argparse
import multiprocessing
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from catalogue.entries import FAMILIES
from catalogue.family import Family
from catalogue.prepared import Prepared, prepare

from segpipe.errors import SegpipeError
from segpipe.export.make import Traced, trace, write
from segpipe.export.settings import LARGEST_DIFFERENCE, LEAST_AGREEMENT, ExportSettings, export_settings

SCRATCH = Path(__file__).parent / "scratch" / "families"


def measure(name: str) -> dict[str, Any]:
    """One row of the table: export at each precision, whatever agreement comes out, in a folder of its own."""
    family = next(family for family in FAMILIES if family.id == name)
    folder = SCRATCH / name
    shutil.rmtree(folder, ignore_errors=True)
    sys.path.insert(0, str(Path(__file__).parent))  # for --module
    prepared = prepare(family, folder)
    row: dict[str, Any] = {"title": _title(family), "weights": _form(prepared.flags["weights"])}
    scenes = (str(prepared.scenes),)
    try:
        traced = trace(_settings(prepared, "fp32"))
    except SegpipeError as error:
        return {**row, "fp32": {"error": str(error)}, "fp16": {}, "int8": {}}
    row["fp32"] = _attempt(traced, _settings(prepared, "fp32", verify=scenes))
    row["fp16"] = _attempt(traced, _settings(prepared, "fp16", verify=scenes))
    row["int8"] = _attempt(traced, _settings(prepared, "int8", calibrate=scenes))
    return row


def _settings(prepared: Prepared, precision: str, **flags: Any) -> ExportSettings:
    unlimited = {"precision": precision, "min_agreement": 0, "max_difference": 1e9, "overwrite": True}
    return export_settings({**prepared.flags, **unlimited, **flags})


def _attempt(traced: Traced, settings: ExportSettings) -> dict[str, Any]:
    """Figures of an export without limits, or why there is none."""
    try:
        made = write(traced, settings)
    except SegpipeError as error:
        return {"error": str(error)}
    agreement = {"labels": made.agreement.equal_labels, "difference": made.agreement.max_difference}
    return {**agreement, "free": made.free_size, "align": made.stride.align, "equivariant": made.stride.equivariant}


def _title(family: Family) -> str:
    return f"{family.library} {family.name}"


def _form(weights: Path) -> str:
    return "folder" if weights.is_dir() else weights.suffix


def _allowed(figures: Mapping[str, Any], precision: Any) -> bool:
    most = LARGEST_DIFFERENCE[precision]
    enough = figures["labels"] >= LEAST_AGREEMENT[precision]
    return bool(enough and (most is None or figures["difference"] <= most))


def _agreement(figures: Mapping[str, Any], precision: str) -> str:
    """Share of equal labels, and that an export by the command line would be refused."""
    if "error" in figures:
        return "fails"
    share = f"{np.floor(figures['labels'] * 1e5) / 1e3:.3f} %"
    return share if _allowed(figures, precision) else f"{share}, refused"


def _line(row: Mapping[str, Any]) -> str:
    made = row["fp32"]
    cells = [row["title"], row["weights"]]
    if "error" in made:
        return f"| {' | '.join(cells)} | no: {made['error']} |" + " |" * 7
    cells += ["yes" if _allowed(made, "fp32") else "refused", _agreement(made, "fp32"), f"{made['difference']:.1e}"]
    cells += ["free" if made["free"] else "fixed", str(made["align"]), "yes" if made["equivariant"] else "no"]
    cells += [_agreement(row["fp16"], "fp16"), _agreement(row["int8"], "int8")]
    return f"| {' | '.join(cells)} |"


LIBRARIES = ("torch", "torchvision", "segmentation-models-pytorch", "transformers", "onnx", "onnxruntime")

PAGE = """---
hide: [toc]
---

# Export

`segpipe export` makes one ONNX file of a trained network: batch of any size, scores of the image's size, and inside it all
that `segpipe run` needs. The file gets its name only if ONNX Runtime gives the scores that torch gives.

<!-- not run: the weights are yours; docs/start/own-model.md has one that runs -->
```sh
segpipe export unet.pth --arch smp:Unet --encoder resnet34 --classes classes.toml \\
    --bands B04,B03,B02,B08 --tile 512 --output unet.onnx
```

The table shows every family at a small size, five classes, seeded random weights, on tiles of the bundled scenes or, for
networks of three channels, of pictures made from them. It is written by `python benchmarks/families.py --output
docs/export.md`, and each family is run through `segpipe run` against torch in `tests/slow/test_families.py`.
[Forms of ONNX files](forms.md) has the same for files that other programs wrote, such as labels from the graph, and
[described models](howto/described-models.md) for folders of bioimage.io and MONAI. For folders of nnU-Net 2, which
`segpipe export nnunet` reads, see [nnU-Net models](howto/nnunet.md).

- **weights**: what they came in; `folder` is one of `save_pretrained`.
- **exports**: `yes` if the fp32 file is within the limits: {labels} of labels equal, scores within {scores} of the largest.
- **equal labels**, **difference**: fp32 against torch on up to six tiles; the largest difference of a score, relative to the
  largest score.
- **size**: `free` if the graph is right at other rows and columns than the tile's, else `fixed`.
- **stride**, **equivariant**: what goes into the contract; `no` where scores depend on where a tile starts. Random weights
  see further than trained ones: here nearly all do.
- **fp16**, **int8**: labels equal to torch's; `refused` is below {fp16} and {int8}, so that no file would be written unless
  `--min-agreement` allowed it. int8 is calibrated on other tiles of the same scenes. Random networks are the worst case:
  their scores are close to each other everywhere. What trained weights lose, `benchmarks/precision.py` measures.

| family | weights | exports | equal labels | difference | size | stride | equivariant | fp16 | int8 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def page(lines: Mapping[str, str]) -> str:
    """The whole document, for lines of the table by their family."""
    from machine import machine

    limits = {name: f"{share:.4%}".rstrip("0%").rstrip(".") + " %" for name, share in LEAST_AGREEMENT.items()}
    head = PAGE.format(labels=limits.pop("fp32"), scores=f"{LARGEST_DIFFERENCE['fp32']:g}", **limits)
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in LIBRARIES if name != "onnxruntime")
    ordered = [lines[_title(family)] for family in FAMILIES if _title(family) in lines]
    return "\n".join([head + "\n".join(ordered), "", f"{machine()}; {versions}. {datetime.now(UTC).date()}.", ""])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="part of a family's name; repeatable")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="families measured at once")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the page has")
    options = parser.parse_args()
    lines = standing(options.output) if options.resume else {}
    wanted = [f for f in FAMILIES if not options.only or any(part.lower() in f.id.lower() for part in options.only)]
    names = [family.id for family in wanted if _title(family) not in lines]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=6) as pool:
        for row in pool.imap_unordered(measure, names):
            lines[row["title"]] = _line(row)
            if options.output:  # what is there so far, whatever becomes of the rest
                options.output.write_text(page(lines), encoding="utf-8")
            print(_line(row), *_errors(row), flush=True)


def standing(document: Path) -> dict[str, str]:
    """Lines of the table in a document, by their family."""
    lines = document.read_text(encoding="utf-8").splitlines()
    return {title: line for line in lines if line.startswith("| ") and (title := line.split(" | ")[0][2:])}


def _errors(row: Mapping[str, Any]) -> list[str]:
    return [f"{key}: {row[key]['error']}" for key in ("fp32", "fp16", "int8") if "error" in row[key]]


if __name__ == "__main__":
    main()
