"""Every family of the catalogue: exported, run by the pipeline, and compared with its own library's labels in torch."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import rasterio
import torch
from catalogue.entries import FAMILIES, of_smp
from catalogue.family import CLASSES
from catalogue.hub import hub as build_hub
from catalogue.libraries import smp as build_smp
from catalogue.pixels import SCENES, tile_of
from catalogue.prepared import arguments, prepare
from torch import nn
from torch.nn import functional

from segpipe.export.families import Network, hub, smp, vision
from segpipe.export.graph import to_onnx
from segpipe.export.make import export_model
from segpipe.export.precision import converted
from segpipe.export.settings import export_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BY_COMMAND = {"torchvision-lraspp_mobilenet_v3_large", "smp-Linknet", "transformers-SegFormer-weights-apart"}
FREE_SIZE = {"segpipe-unet", "smp-FPN", "own-torch.export", "own-module-without-padding"}
ON_A_SCENE = {"smp-Unet", "segpipe-bisenetv2", "segpipe-unet"}
TILES = {"torchvision": 32, "smp": 64, "PAN": 128, "Mask2Former": 384}
"""PAN needs a tile of two strides of 64, and Mask2Former's processor knows one size."""
FEWER: dict[str, dict[str, Any]] = {
    "smp-Unet": {"encoder_depth": 3, "decoder_channels": [32, 16, 16]},
    "smp-UnetPlusPlus": {"encoder_depth": 3, "decoder_channels": [32, 16, 16]},
    "smp-FPN": {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32},
    "smp-DeepLabV3": {"decoder_channels": 32},
    "smp-DeepLabV3Plus": {"decoder_channels": 32},
    "smp-Linknet": {"encoder_depth": 3},
    "smp-MAnet": {"encoder_depth": 3, "decoder_channels": [32, 16, 16], "decoder_pab_channels": 16},
    "smp-PAN": {"encoder_depth": 3, "decoder_channels": 16},
    "smp-UPerNet": {"encoder_depth": 3, "decoder_channels": 32},
    "smp-DPT": {
        **{"encoder": "tu-test_vit", "dynamic_img_size": True},
        **{"decoder_intermediate_channels": [16, 16, 32, 32], "decoder_fusion_channels": 32},
    },
}
"""Options of smp's networks, whose levels do all the same: their graphs have as many kinds of operators."""
UNSHIFTED = {"backbone_config.depths": [1, 1, 1, 1]}
"""Every second layer of a Swin has shifted windows: those of UperNet and MaskFormer have them."""
LAYERS: dict[str, dict[str, Any]] = {
    "MaskFormer": {"decoder_config.decoder_layers": 1},
    "Mask2Former": {**UNSHIFTED, "encoder_layers": 1, "decoder_layers": 2},
    "OneFormer": {**UNSHIFTED, "encoder_layers": 1, "decoder_layers": 2, "query_dec_layers": 1},
    "EoMT": {"num_hidden_layers": 2, "num_blocks": 1},
    "EoMT-DINOv3": {"num_hidden_layers": 2, "num_blocks": 1},
}
"""Numbers of layers that do the same, in the configurations of transformers."""

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
REFLECTANCE = {"mean": [0.0556, 0.0838, 0.0763, 0.2925], "std": [0.0168, 0.0222, 0.0301, 0.0864]}

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.id)


def normalised(pixels, scale, mean, std):
    """A batch of one image, ``(1, channels, rows, cols)``."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return ((torch.from_numpy(pixels.astype(np.float32)) * scale - mean) / std)[None]


def labels_by_its_library(family, prepared, pixels):
    """Labels ``(rows, cols)`` in torch, without anything of segpipe's."""
    with torch.inference_mode():
        if family.processor:
            return by_transformers(family, prepared, pixels).numpy()
        if family.library == "torchvision":
            return prepared.network(normalised(pixels, 1 / 255, **IMAGENET))["out"][0].argmax(0).numpy()
        image = functional.pad(normalised(pixels, 1e-4, **REFLECTANCE), [family.margin] * 4, mode="reflect")
        return resized(family.call(prepared.network, image), pixels.shape[1:])[0].argmax(0).numpy()


def resized(scores, size):
    return functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def by_transformers(family, prepared, pixels):
    """The library's own steps before and behind the network."""
    import transformers

    processor = getattr(transformers, family.processor)()
    if family.processor == "EomtImageProcessor":  # masks come to the size of its images
        processor.size = dict.fromkeys(("shortest_edge", "longest_edge"), family.tile)
    if family.name == "OneFormer":
        given = oneformer_processor(prepared)(list(pixels[None]), ["semantic"], do_resize=False, return_tensors="pt")
        found = prepared.network(given["pixel_values"], given["task_inputs"])
    else:
        found = prepared.network(processor(pixels, do_resize=False, return_tensors="pt")["pixel_values"])
    size = pixels.shape[1:]
    if "masks_queries_logits" in found:
        # Before queries are summed, their masks are brought to the image's size, as the authors of all three do; the
        # processors of MaskFormer and OneFormer do it behind the sum, that of Mask2Former to 384 pixels, as many as here.
        found.masks_queries_logits = resized(found.masks_queries_logits, size)
    return processor.post_process_semantic_segmentation(found, target_sizes=[size])[0]


def oneformer_processor(prepared):
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(prepared.flags["weights"])
    return transformers.OneFormerProcessor(transformers.OneFormerImageProcessor(), tokenizer)


def sized(family):
    """With fewer levels, layers and pixels where that leaves out no kind of operator."""
    tile = TILES.get(family.name) or TILES.get(family.library, family.tile)
    if family.id in FEWER:
        family = of_smp(family.name, family.save, **FEWER[family.id])
    if family.name == "Unet, smp-hub":
        family = replace(family, build=partial(build_smp, "Unet", "resnet18", FEWER["smp-Unet"]))
    if family.name in LAYERS:
        kind, config = family.build.args
        family = replace(family, build=partial(build_hub, kind, partial(with_layers, config, LAYERS[family.name])))
    return replace(family, tile=tile)


def with_layers(config, counts, library):
    """The configuration that is made by ``config``, with other numbers of layers."""
    made = config(library)
    for name, count in counts.items():
        inner, _, last = name.rpartition(".")
        setattr(getattr(made, inner) if inner else made, last, count)
    return made


def with_fewer_blocks(monkeypatch):
    """Blocks that do all the same are one: the ResNets of torchvision keep those of 101 that follow one another, and its
    MobileNets have none that is as the one before; smp's encoders have one block a stage."""
    from segmentation_models_pytorch.encoders import encoders
    from torchvision.models import mobilenetv3, resnet

    make, settings = resnet._resnet, mobilenetv3._mobilenet_v3_conf

    def few(name, **options):
        blocks, last = settings(name, **options)
        shapes = [(block.input_channels, block.out_channels) for block in blocks]
        return [block for n, block in enumerate(blocks) if shapes[n] != shapes[n - 1]], last

    monkeypatch.setattr(
        resnet, "_resnet", lambda kind, counts, *rest, **more: make(kind, [max(n // 8, 1) for n in counts], *rest, **more)
    )
    monkeypatch.setattr(mobilenetv3, "_mobilenet_v3_conf", few)
    for name, blocks in (("resnet18", "layers"), ("mit_b0", "depths")):
        monkeypatch.setitem(encoders[name]["params"], blocks, [1, 1, 1, 1])


def exported(family, prepared, segpipe):
    """The model's path; by the command line for some, in this process for the others."""
    flags = {**prepared.flags, "verify": (str(prepared.scenes),), "fixed_size": family.id not in FREE_SIZE}
    if family.id in BY_COMMAND:
        ended = segpipe("export", *arguments(flags))
        assert ended.returncode == 0, ended.stderr
        return flags["output"]
    made = export_model(export_settings(flags))
    assert made.agreement.equal_labels >= 0.9999
    assert made.agreement.max_difference <= 1e-4
    assert made.free_size is (family.id in FREE_SIZE)
    return made.path


def read(path):
    with rasterio.open(path) as mask:
        return mask.read(1)


def check(found, wanted):
    """At least 99.99 % of labels are equal, and at least three classes have 5 % each."""
    shares = np.bincount(wanted.ravel(), minlength=len(CLASSES)) / wanted.size
    assert (shares >= 0.05).sum() >= 3, shares
    assert (found == wanted).mean() >= 0.9999


@pytest.mark.timeout(600)  # OneFormer's graph takes a minute to export, and several on a busy machine
@every_family
def test_labels_of_a_run_are_those_of_torch(family, raster, run_serial, segpipe, tmp_path, monkeypatch):
    family = sized(family)
    if family.library in {"torchvision", "smp"}:
        with_fewer_blocks(monkeypatch)
    prepared = prepare(family, tmp_path / "made")
    model = exported(family, prepared, segpipe)
    pixels = tile_of(family)
    suffix = "tif" if family.channels == 4 else "png"
    out = run_serial(raster(f"in/tile.{suffix}", pixels), model)
    check(read(out / f"tile.{suffix}"), labels_by_its_library(family, prepared, pixels))
    if family.id in ON_A_SCENE:
        scene = raster("scene/pirai.tif", uneven(), nodata=0)
        out = run_serial(scene, model, blend="constant", overlap=32, output=tmp_path / "labelled")
        check_on_a_scene(family, prepared, uneven(), read(out / scene.name))


def uneven():
    """Part of a scene ``(bands, rows, cols)`` with nodata at a side; its size is no multiple of a tile or a stride."""
    with rasterio.open(SCENES / "pirai.tif") as scene:
        return scene.read()[:, 300:541, 40:253]


def check_on_a_scene(family, prepared, stored, found):
    """Many windows: the mean of torch's scores of all that hold a pixel, laid out by hand."""
    valid = (stored != 0).all(axis=0)
    image = torch.where(torch.from_numpy(valid), normalised(stored, 1e-4, **REFLECTANCE), 0)
    align = align_of(prepared.flags["output"])
    wanted = mean_of_windows(prepared.network, image, family.tile, 32, align).argmax(0)
    np.testing.assert_array_equal(found == 255, ~valid)
    check(found[valid], wanted[valid])


def align_of(model):
    from segpipe.export.file import spec_of

    return spec_of(model).tiling.align[0]


def mean_of_windows(network, image, tile, overlap, align):
    """Scores ``(classes, rows, cols)``, with the far borders mirrored."""
    rows, cols = image.shape[-2:]
    grid = [starts(size, tile, overlap, align) for size in (rows, cols)]
    far = [axis[-1] + tile - size for axis, size in zip(grid, (rows, cols), strict=True)]
    image = functional.pad(image, (0, far[1], 0, far[0]), mode="reflect")
    total, count = torch.zeros(len(CLASSES), *image.shape[-2:]), torch.zeros(image.shape[-2:])
    for place in ((slice(r, r + tile), slice(c, c + tile)) for r in grid[0] for c in grid[1]):
        with torch.inference_mode():
            total[:, *place] += resized(network(image[:, :, *place]), (tile, tile))[0]
        count[place] += 1
    return (total / count)[:, :rows, :cols].numpy()


def starts(size, tile, overlap, align):
    """The formula, written down once more."""
    last = math.ceil((size - tile) / align)
    count = math.ceil(last / ((tile - overlap) // align)) + 1
    return [align * (i * last // (count - 1)) for i in range(count)]


def test_the_catalogue_has_every_network_that_can_be_named():
    named = {family.name for family in FAMILIES}
    assert named >= {*vision.NAMES, *smp.NAMES, "bisenetv2", "unet"}


def test_oneformer_is_told_its_task_as_its_own_processor_tells_it(tmp_path):
    family = next(family for family in FAMILIES if family.name == "OneFormer")
    prepared = prepare(family, tmp_path)
    network = hub.open_folder(prepared.flags["weights"], classes=5, replace_head=False, trust_pickle=False)
    processor = oneformer_processor(prepared)
    given = processor(list(tile_of(family)[None]), ["semantic"], return_tensors="pt")["task_inputs"]
    torch.testing.assert_close(network.module.tokens, given)
    words = processor.tokenizer.convert_ids_to_tokens(given[0, :7])
    assert words[:6] == ["<|startoftext|>", "the</w>", "task</w>", "is</w>", "semantic</w>", "<|endoftext|>"]
    assert not given[0, 6:].any()


class Asked(nn.Module):
    """The form of a network of queries: its masks are its image, and each query's class is the same everywhere."""

    def __init__(self, queries):
        super().__init__()
        self.classes = nn.Parameter(4 * torch.randn(queries, len(CLASSES) + 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, image):
        return SimpleNamespace(masks_queries_logits=image, class_queries_logits=self.classes.expand(len(image), -1, -1))


@pytest.mark.parametrize(("precision", "most", "least"), [("fp32", 1e-5, 1), ("fp16", 5e-3, 0.999)])
@pytest.mark.parametrize("depth", [0, 20, 60, 200])
def test_a_pixel_that_every_query_rejects_is_the_one_of_the_least_unlikely(depth, precision, most, least):
    """The quotient of the papers, in float64, which holds 1e-200."""
    network = Asked(20).eval()
    image = 5 * torch.randn(2, 20, 64, 64, generator=torch.Generator().manual_seed(1)) - depth
    classes = network.classes.detach().double().softmax(-1)[:, :-1]
    sums = torch.einsum("qc,bqhw->bchw", classes, image.double().sigmoid())
    wanted = (sums / sums.sum(1, keepdim=True)).numpy()
    proto = to_onnx(Network(hub.Queries(network, None), "asked"), (20, 64, 64), free_size=False)
    session = onnxruntime.InferenceSession(converted(proto, precision, []).SerializeToString())
    (found,) = session.run(None, {"image": image.numpy()})
    assert np.abs(found - wanted).max() <= most
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= least
