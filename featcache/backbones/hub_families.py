"""Which image backbones of keras-hub featcache takes, and their published presets.

Pure data, so that names can be checked and listed without keras-hub. Parameters and handles are those of keras-hub
0.32; tests/backbones/test_hub_families.py compares them with the installed one. Licences are those of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from featcache.errors import UnknownBackbone
from featcache.spec import did_you_mean

Sizes = Literal["one", "patches", "windows", "any"]


@dataclass(frozen=True)
class Published:
    """One published preset. params: as keras-hub counts them, with the text tower of CLIP and SigLIP."""

    name: str
    version: int  # on Kaggle
    params: int
    size: int  # pixels a side, of the images that trained it
    width: int  # features of "top"


@dataclass(frozen=True)
class HubFamily:
    """Networks that are built in the same way.

    classes: of keras-hub, as config.json names them. handle: of all presets, on Kaggle. sizes: which sizes of images
    the networks take: only "one", multiples of the "patches" or of the last "windows", or "any". terms: what must be
    accepted before a download.
    """

    title: str
    classes: tuple[str, ...]
    licence: str
    sizes: Sizes
    handle: str
    presets: tuple[Published, ...]
    terms: str = ""


_GEMMA = "Gemma terms (ai.google.dev/gemma/terms)"
_HAI_DEF = "HAI-DEF terms (developers.google.com/health-ai-developer-foundations/terms)"

FAMILIES = (
    HubFamily(
        "DINOv2",
        ("DINOV2Backbone",),
        "Apache-2.0",
        "patches",
        "dinov2",
        (
            Published("dinov2_small", 1, 22_582_656, 518, 384),
            Published("dinov2_base", 1, 87_632_640, 518, 768),
            Published("dinov2_large", 1, 305_771_520, 518, 1024),
            Published("dinov2_giant", 1, 1_138_585_088, 518, 1536),
            Published("dinov2_with_registers_small", 1, 22_584_192, 518, 384),
            Published("dinov2_with_registers_base", 1, 87_635_712, 518, 768),
            Published("dinov2_with_registers_large", 1, 305_775_616, 518, 1024),
            Published("dinov2_with_registers_giant", 1, 1_138_591_232, 518, 1536),
        ),
    ),
    HubFamily(
        "DINOv3",
        ("DINOV3Backbone",),
        "DINOv3 License",
        "patches",
        "dinov3",
        (
            Published("dinov3_vit_small_lvd1689m", 1, 21_600_000, 224, 384),
            Published("dinov3_vit_small_plus_lvd1689m", 1, 29_000_000, 224, 384),
            Published("dinov3_vit_base_lvd1689m", 1, 86_000_000, 224, 768),
            Published("dinov3_vit_large_lvd1689m", 1, 300_000_000, 224, 1024),
            Published("dinov3_vit_huge_plus_lvd1689m", 1, 840_000_000, 224, 1280),
            Published("dinov3_vit_7b_lvd1689m", 1, 6_700_000_000, 224, 4096),
            Published("dinov3_vit_large_sat493m", 1, 300_000_000, 224, 1024),
            Published("dinov3_vit_7b_sat493m", 1, 6_700_000_000, 224, 4096),
        ),
        "the DINOv3 License of Meta, ai.meta.com/resources/models-and-libraries/dinov3-license, which you accept on "
        "the page of the model",
    ),
    HubFamily(
        "SigLIP",
        ("SigLIPBackbone", "SigLIPVisionEncoder"),
        "Apache-2.0",
        "one",
        "siglip",
        (
            Published("siglip_base_patch16_224", 1, 203_156_230, 224, 768),
            Published("siglip_base_patch16_256", 1, 203_202_370, 256, 768),
            Published("siglip_base_patch16_384", 1, 203_448_450, 384, 768),
            Published("siglip_base_patch16_512", 1, 203_792_962, 512, 768),
            Published("siglip_base_patch16_256_multilingual", 1, 370_626_370, 256, 768),
            Published("siglip_large_patch16_256", 1, 652_151_106, 256, 1024),
            Published("siglip_large_patch16_384", 1, 652_479_106, 384, 1024),
            Published("siglip_so400m_patch14_224", 1, 877_360_578, 224, 1152),
            Published("siglip_so400m_patch14_384", 1, 877_961_291, 384, 1152),
            Published("siglip_so400m_patch16_256_i18n", 1, 1_128_759_282, 256, 1152),
            Published("siglip2_base_patch16_224", 1, 375_188_230, 224, 768),
            Published("siglip2_base_patch16_256", 1, 375_234_370, 256, 768),
            Published("siglip2_base_patch16_384", 1, 376_856_194, 384, 768),
            Published("siglip2_base_patch32_256", 1, 376_856_194, 256, 768),
            Published("siglip2_large_patch16_256", 1, 881_527_106, 256, 1024),
            Published("siglip2_large_patch16_384", 1, 881_855_106, 384, 1024),
            Published("siglip2_large_patch16_512", 1, 882_314_306, 512, 1024),
            Published("siglip2_so400m_patch14_224", 1, 1_135_463_922, 224, 1152),
            Published("siglip2_so400m_patch14_384", 1, 1_136_009_291, 384, 1152),
            Published("siglip2_so400m_patch16_256", 1, 1_135_671_282, 256, 1152),
            Published("siglip2_so400m_patch16_384", 1, 1_136_040_242, 384, 1152),
            Published("siglip2_so400m_patch16_512", 1, 1_136_555_698, 512, 1152),
            Published("siglip2_giant_opt_patch16_256", 2, 1_871_394_226, 256, 1536),
            Published("siglip2_giant_opt_patch16_384", 1, 1_871_886_066, 384, 1536),
        ),
    ),
    HubFamily(
        "MedSigLIP",
        (),  # those of SigLIP
        _HAI_DEF,
        "one",
        "medsiglip",
        (Published("medsiglip_900m_448", 1, 878_301_426, 448, 1152),),
        f"the {_HAI_DEF}, which you accept on the page of the model",
    ),
    HubFamily(
        "CLIP",
        ("CLIPBackbone", "CLIPVisionEncoder"),
        "MIT",
        "one",
        "clip",
        (
            Published("clip_vit_base_patch16", 3, 149_620_934, 224, 768),
            Published("clip_vit_base_patch32", 3, 151_277_363, 224, 768),
            Published("clip_vit_large_patch14", 3, 427_616_770, 224, 1024),
            Published("clip_vit_large_patch14_336", 3, 427_944_770, 336, 1024),
            Published("clip_vit_b_32_laion2b_s34b_b79k", 3, 151_277_363, 224, 768),
            Published("clip_vit_h_14_laion2b_s32b_b79k", 3, 986_109_698, 224, 1280),
            Published("clip_vit_g_14_laion2b_s12b_b42k", 3, 1_366_678_530, 224, 1408),
            Published("clip_vit_bigg_14_laion2b_39b_b160k", 3, 2_539_567_362, 224, 1664),
        ),
    ),
    HubFamily(
        "ViT",
        ("ViTBackbone",),
        "Apache-2.0",
        "one",
        "vit",
        (
            Published("vit_base_patch16_224_imagenet", 4, 85_798_656, 224, 768),
            Published("vit_base_patch16_384_imagenet", 4, 86_090_496, 384, 768),
            Published("vit_base_patch32_384_imagenet", 3, 87_528_192, 384, 768),
            Published("vit_large_patch16_224_imagenet", 4, 303_301_632, 224, 1024),
            Published("vit_large_patch16_384_imagenet", 4, 303_690_752, 384, 1024),
            Published("vit_large_patch32_384_imagenet", 3, 305_607_680, 384, 1024),
            Published("vit_base_patch16_224_imagenet21k", 3, 85_798_656, 224, 768),
            Published("vit_base_patch32_224_imagenet21k", 3, 87_455_232, 224, 768),
            Published("vit_large_patch16_224_imagenet21k", 3, 303_301_632, 224, 1024),
            Published("vit_large_patch32_224_imagenet21k", 3, 305_510_400, 224, 1024),
            Published("vit_huge_patch14_224_imagenet21k", 3, 630_764_800, 224, 1280),
        ),
    ),
    HubFamily(
        "DeiT",
        ("DeiTBackbone",),
        "Apache-2.0",
        "one",
        "deit",
        (
            Published("deit_tiny_distilled_patch16_224_imagenet", 1, 5_524_800, 224, 192),
            Published("deit_small_distilled_patch16_224_imagenet", 1, 21_666_432, 224, 384),
            Published("deit_base_distilled_patch16_224_imagenet", 1, 85_800_192, 224, 768),
            Published("deit_base_distilled_patch16_384_imagenet", 1, 86_092_032, 384, 768),
        ),
    ),
    HubFamily(
        "Swin",
        ("SwinTransformerBackbone",),
        "MIT",
        "windows",
        "swin-transformer",
        (
            Published("swin_tiny_patch4_window7_224", 1, 27_519_354, 224, 768),
            Published("swin_small_patch4_window7_224", 1, 48_837_258, 224, 768),
            Published("swin_base_patch4_window7_224", 1, 86_743_224, 224, 1024),
            Published("swin_base_patch4_window12_384", 1, 86_878_584, 384, 1024),
            Published("swin_large_patch4_window7_224", 1, 194_995_476, 224, 1536),
            Published("swin_large_patch4_window12_384", 1, 195_198_516, 384, 1536),
        ),
    ),
    HubFamily(
        "MobileNetV5",
        ("MobileNetV5Backbone",),
        _GEMMA,
        "any",
        "mobilenetv5",
        (Published("mobilenetv5_300m_enc_gemma3n", 1, 294_284_096, 768, 2048),),
        f"the {_GEMMA}, which you accept on the page of the model",
    ),
)


def family_of_class(class_name: str) -> HubFamily | None:
    """Return the family of a class of keras-hub; None if featcache does not take it."""
    for family in FAMILIES:
        if class_name in family.classes:
            return family
    return None


def published(name: str) -> tuple[HubFamily, Published]:
    """Return a published preset and its family. Raises UnknownBackbone with near names."""
    for family, preset in all_published():
        if preset.name == name:
            return family, preset
    names = [preset.name for _, preset in all_published()]
    raise UnknownBackbone(
        f"featcache knows no preset '{name}' of keras-hub{did_you_mean(name, names)}. All names: featcache backbones "
        "list. Of another preset, name the folder or the address: hub:./FOLDER, hub:hf://OWNER/NAME"
    )


def all_published() -> Iterator[tuple[HubFamily, Published]]:
    """Yield every published preset with its family."""
    for family in FAMILIES:
        for preset in family.presets:
            yield family, preset
