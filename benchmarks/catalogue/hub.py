"""Networks of transformers, by small configurations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from catalogue.family import CLASSES
from catalogue.tokenizer import vocabulary

COUNT = {"num_labels": len(CLASSES)}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
VIT = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 128}
QUERIES = {"hidden_dim": 32, "num_queries": 10, "encoder_layers": 2, "decoder_layers": 3, "num_attention_heads": 4}
QUERIES |= {"dim_feedforward": 64, "encoder_feedforward_dim": 64}
TEXT = {"text_encoder_width": 32, "text_encoder_num_layers": 1, "text_encoder_proj_layers": 1, "is_training": False}


def transformers_library() -> Any:
    """The library, by way of the file that keeps it offline."""
    import segpipe.export.families.hub  # noqa: F401 - it keeps the library offline
    from segpipe.export.families import need

    return need("transformers")


def hub(name: str, config: Callable[[Any], Any]) -> Any:
    library = transformers_library()
    return getattr(library, name)(config(library))


def swin(t: Any) -> Any:
    return t.SwinConfig(image_size=128, embed_dim=24, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, **STAGES)


def convnext(t: Any) -> Any:
    sizes = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
    return t.ConvNextConfig(**sizes, layer_scale_init_value=1.0, **STAGES)


def segformer(t: Any) -> Any:
    return t.SegformerConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], decoder_hidden_size=64, **COUNT)


def upernet(backbone: Callable[[Any], Any], t: Any) -> Any:
    return t.UperNetConfig(backbone_config=backbone(t), hidden_size=32, use_auxiliary_head=False, **COUNT)


def dpt(t: Any) -> Any:
    neck = {"neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 32, "backbone_out_indices": [0, 1, 2, 3]}
    return t.DPTConfig(**VIT, **neck, patch_size=16, readout_type="project", use_auxiliary_head=False, **COUNT)


def beit(t: Any) -> Any:
    places = {"use_relative_position_bias": True, "use_absolute_position_embeddings": False, "layer_scale_init_value": 1.0}
    taken = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2, 3, 6], "use_auxiliary_head": False}
    return t.BeitConfig(**VIT, **places, **taken, patch_size=16, **COUNT)


def mask2former(t: Any) -> Any:
    return t.Mask2FormerConfig(backbone_config=swin(t), feature_size=32, mask_feature_size=32, **QUERIES, **COUNT)


def maskformer(t: Any) -> Any:
    layers = {"decoder_layers": 2, "encoder_layers": 1, "decoder_attention_heads": 4, "encoder_attention_heads": 4}
    decoder = t.DetrConfig(d_model=32, num_queries=10, decoder_ffn_dim=64, encoder_ffn_dim=64, **layers)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    return t.MaskFormerConfig(backbone_config=swin(t), decoder_config=decoder, **sizes, **COUNT)


def oneformer(t: Any) -> Any:
    return t.OneFormerConfig(backbone_config=swin(t), conv_dim=32, mask_dim=32, **TEXT, **QUERIES, **COUNT)


def with_task(network: Any, images: Tensor) -> Any:
    """OneFormer is told its task, by tokens padded with 0."""
    words = ("<|startoftext|>", "the</w>", "task</w>", "is</w>", "semantic</w>", "<|endoftext|>")
    tokens = torch.zeros(len(images), network.config.task_seq_len, dtype=torch.long)
    tokens[:, : len(words)] = torch.tensor([vocabulary()[word] for word in words])
    return network(images, tokens)


EOMT = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 128, "patch_size": 16}
EOMT |= {"num_blocks": 2, "num_queries": 10, "num_upscale_blocks": 2}


def eomt(t: Any) -> Any:
    return t.EomtConfig(**EOMT, mlp_ratio=2, **COUNT)


def eomt_dinov3(t: Any) -> Any:
    return t.EomtDinov3Config(**EOMT, intermediate_size=128, **COUNT)
