"""The catalogue: one entry for each family."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from catalogue.family import Family
from catalogue.hub import (
    beit,
    convnext,
    dpt,
    eomt,
    eomt_dinov3,
    hub,
    mask2former,
    maskformer,
    oneformer,
    segformer,
    swin,
    upernet,
    with_task,
)
from catalogue.libraries import bisenet, smp, unet, vision
from catalogue.own import DAY, Change, Ladder, Season, Valid, of_change, of_season
from catalogue.weights import (
    as_on_the_hub,
    config_apart,
    lightning,
    pretrained,
    program,
    safetensors,
    scripted,
    sized_as_trained,
    state_dict,
    traced,
    training_state,
    with_tokenizer,
)

DECODE = "decode_head.classifier"
MASKS = "model.pixel_level_module.decoder.mask_projection"
PER_QUERY = "model.transformer_module.decoder"


def of_smp(name: str, save: Callable[[nn.Module, Path], Path], encoder: str = "resnet18", **options: Any) -> Family:
    head = "segmentation_head.head.4" if name == "DPT" else "segmentation_head.0"
    words = tuple(f"{key}={json.dumps(value)}" for key, value in options.items())
    flags = {"arch": f"smp:{name}", "encoder": encoder, **({"options": words} if words else {})}
    tile = 256 if name == "PAN" else 128  # its total stride is 128
    return Family("smp", name, partial(smp, name, encoder, options), (head,), save, flags, channels=4, tile=tile)


def _of_vision(name: str, save: Callable[[nn.Module, Path], Path], **options: Any) -> Family:
    heads = ("classifier.low_classifier", "classifier.high_classifier") if "lraspp" in name else ("classifier.4",)
    flags = {"arch": f"torchvision:{name}", "imagenet": True}
    return Family("torchvision", name, partial(vision, name, **options), heads, save, flags)


def _of_hub(name: str, kind: str, config: Callable[[Any], Any], head: str, processor: str) -> Family:
    save = partial(pretrained, processor=processor)
    return Family("transformers", name, partial(hub, kind, config), (head,), save, processor=processor)


def _of_ours(name: str, save: Callable[[nn.Module, Path], Path], **flags: Any) -> Family:
    return Family("own", name, Ladder, ("head",), save, flags, channels=4)


def _of_eomt(name: str, kind: str, config: Callable[[Any], Any]) -> Family:
    build = partial(hub, f"{kind}ForUniversalSegmentation", config)
    queries = ("mask_head.fc3", "class_predictor")
    return Family("transformers", name, build, (), sized_as_trained, queries=queries, processor="EomtImageProcessor")


FAMILIES = (
    _of_vision("fcn_resnet50", training_state, aux_loss=True),
    _of_vision("fcn_resnet101", state_dict),
    _of_vision("deeplabv3_resnet50", state_dict),
    _of_vision("deeplabv3_resnet101", safetensors),
    _of_vision("deeplabv3_mobilenet_v3_large", lightning),
    _of_vision("lraspp_mobilenet_v3_large", state_dict),
    of_smp("Unet", lightning),
    of_smp("UnetPlusPlus", safetensors),
    of_smp("FPN", state_dict),
    of_smp("PSPNet", state_dict),
    of_smp("DeepLabV3", state_dict),
    of_smp("DeepLabV3Plus", partial(lightning, attribute="net")),
    of_smp("Linknet", state_dict),
    of_smp("MAnet", safetensors),
    of_smp("PAN", training_state),
    of_smp("UPerNet", state_dict),
    of_smp("Segformer", safetensors, encoder="mit_b0"),
    of_smp("DPT", state_dict, encoder="tu-vit_tiny_patch16_224", dynamic_img_size=True),
    Family(
        "smp",
        "Unet, smp-hub",
        partial(smp, "Unet", "resnet18", {}),
        ("segmentation_head.0",),
        as_on_the_hub,
        {"classes": "{folder}/names.toml"},
        channels=4,
    ),
    _of_hub("SegFormer", "SegformerForSemanticSegmentation", segformer, DECODE, "SegformerImageProcessor"),
    Family(
        "transformers",
        "SegFormer, weights apart",
        partial(hub, "SegformerForSemanticSegmentation", segformer),
        (DECODE,),
        config_apart,
        {"arch": "transformers:{folder}/config", "imagenet": True},
        processor="SegformerImageProcessor",
    ),
    _of_hub(
        "UperNet, ConvNeXt",
        "UperNetForSemanticSegmentation",
        partial(upernet, convnext),
        DECODE,
        "SegformerImageProcessor",
    ),
    _of_hub("UperNet, Swin", "UperNetForSemanticSegmentation", partial(upernet, swin), DECODE, "SegformerImageProcessor"),
    _of_hub("DPT", "DPTForSemanticSegmentation", dpt, "head.head.4", "DPTImageProcessor"),
    _of_hub("BEiT", "BeitForSemanticSegmentation", beit, DECODE, "BeitImageProcessor"),
    Family(
        "transformers",
        "MaskFormer",
        partial(hub, "MaskFormerForInstanceSegmentation", maskformer),
        (MASKS,),
        partial(pretrained, processor="MaskFormerImageProcessor"),
        queries=("mask_embedder.2.0", "class_predictor"),
        processor="MaskFormerImageProcessor",
    ),
    Family(
        "transformers",
        "Mask2Former",
        partial(hub, "Mask2FormerForUniversalSegmentation", mask2former),
        (MASKS,),
        partial(pretrained, processor="Mask2FormerImageProcessor"),
        queries=(f"{PER_QUERY}.mask_predictor.mask_embedder.2.0", "class_predictor"),
        processor="Mask2FormerImageProcessor",
    ),
    Family(
        "transformers",
        "OneFormer",
        partial(hub, "OneFormerForUniversalSegmentation", oneformer),
        (MASKS,),
        with_tokenizer,
        call=with_task,
        queries=(f"{PER_QUERY}.mask_embed.layers.2.0", f"{PER_QUERY}.class_embed"),
        processor="OneFormerImageProcessor",
    ),
    _of_eomt("EoMT", "Eomt", eomt),
    _of_eomt("EoMT-DINOv3", "EomtDinov3", eomt_dinov3),
    Family("segpipe", "bisenetv2", bisenet, ("head.conv_out.1",), state_dict, {"arch": "bisenetv2"}, channels=4),
    Family("segpipe", "unet", unet, ("head",), lightning, {"arch": "unet", "options": ("widths=[8, 16, 32]",)}, channels=4),
    _of_ours("module", safetensors, module="catalogue.own:ladder", options=("width=16",)),
    Family(
        "own",
        "module without padding",
        Valid,
        ("head",),
        safetensors,
        {"module": "catalogue.own:valid", "options": ("width=16",)},
        channels=4,
        margin=8,
    ),
    _of_ours("TorchScript, traced", traced),
    _of_ours("TorchScript, scripted", scripted),
    _of_ours("torch.export", program),
    Family(
        *("own", "module of two images", Change, ("head",), state_dict, {"module": "catalogue.own:Change"}),
        channels=4,
        call=of_change,
        inputs='inputs.before = { channels = "0:2" }\ninputs.after = { channels = ["B04", "B08"] }\n',
    ),
    Family(
        *("own", "module of two dates and a constant", Season, ("head",), state_dict, {"module": "catalogue.own:Season"}),
        channels=4,
        call=of_season,
        inputs=f'inputs.image = {{ channels = ":", axes = "NCTHW", dates = 2 }}\ninputs.day = {{ value = {DAY} }}\n',
    ),
)
