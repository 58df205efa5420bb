"""What an export prints, from figures by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from networks import contract

from segpipe.contract import parse_contract
from segpipe.export.show import print_attached, print_export


def terms(**provenance):
    return parse_contract(contract(4, 5, tile=[128, 256], provenance=provenance), "test")


AGREEMENT = SimpleNamespace(tiles=6, source="noise", equal_labels=0.99996, miou=0.99991, max_difference=2.3e-6)


@pytest.mark.parametrize(
    ("error", "free", "line"),
    [
        (0.0, True, "tile 128 x 256, rows and columns free; windows start at multiples of 32"),
        (
            0.25,
            False,
            "tile 128 x 256, size fixed to the tile; windows start at multiples of 32, though scores change by 25.0% under "
            "such shifts",
        ),
    ],
)
def test_an_export_is_three_lines_and_its_notes(error, free, line, capsys):
    facts = {"architecture": "smp:Unet", "parameters": 14_328_645, "precision": "fp32", "verification": {}}
    stride = SimpleNamespace(align=32, equivariant=not error, error=error)
    made = SimpleNamespace(agreement=AGREEMENT, contract=terms(**facts), notes=("no auxiliary head",), free_size=free)
    made.stride, made.path = stride, Path("unet.onnx")
    print_export(made)
    out, err = capsys.readouterr()
    assert err == "note: no auxiliary head\n"
    assert out.splitlines() == [
        "unet.onnx: smp:Unet, 14,328,645 parameters, fp32, 4 channels to 5 scores",
        line,
        "agrees with torch on 6 tiles of noise: 99.9960% equal labels, mIoU 0.9999, largest difference of scores 2.3e-06 of "
        "the largest",
    ]


def test_a_contract_that_is_attached_is_told_with_the_stride_of_images(capsys):
    stride = SimpleNamespace(align=8, equivariant=True, error=0.0)
    print_attached(SimpleNamespace(path=Path("m.onnx"), contract=terms(), stride=stride, notes=()))
    print_attached(SimpleNamespace(path=Path("v.onnx"), contract=terms(), stride=None, notes=("it is large",)))
    out, err = capsys.readouterr()
    assert err == "note: it is large\n"
    assert out.splitlines() == [
        "m.onnx: 4 channels to 5 scores, contract attached",
        "windows start at multiples of 8, as measured",
        "v.onnx: 4 channels to 5 scores, contract attached",
    ]
