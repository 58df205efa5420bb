"""Settings that need scores, refused for a model that gives labels; and the blend that labels take."""

from collections.abc import Iterator
from pathlib import Path

from segpipe.choices import Blend
from segpipe.contract import Contract
from segpipe.errors import SettingsError
from segpipe.settings import Settings

LABELS_BLEND: Blend = "crop"
"""The nearest window decides: labels cannot be averaged."""


def resolve_blend(settings: Settings, contract: Contract) -> Blend:
    """The user's blend; for labels ``crop``, which must not contradict what was asked for.

    Raises:
        SettingsError: labels were to be averaged.
    """
    if not contract.gives_labels:
        return settings.blend
    if "blend" in settings.model_fields_set and settings.blend != LABELS_BLEND:
        raise SettingsError(
            f'blend {settings.blend} averages scores, and the contract says activation = "labels": labels are taken from '
            "the nearest tile (blend crop), so leave --blend out"
        )
    return LABELS_BLEND


def check_scores_needed(settings: Settings, contract: Contract, path: Path) -> None:
    """Check that nothing was asked for that needs scores, if the model gives labels.

    Raises:
        SettingsError: with the setting, and how to go on without it.
    """
    if not contract.gives_labels:
        return
    for asked, flag in _asked(settings):
        raise SettingsError(f'{asked} needs scores, and {path} gives labels (activation = "labels"): leave {flag} out')


def _asked(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting that needs scores, and its flag."""
    if len(settings.model) > 1:
        yield f"the mean of {len(settings.model)} models", "all models but one"
    if settings.confidence:
        yield "confidence", "--confidence"
    if settings.audit is not None:
        yield "audit", "--audit"
    if settings.tta != "none":
        yield f"tta {settings.tta}", "--tta"
    if settings.blend_on is not None:
        yield f"blend_on {settings.blend_on}", "--blend-on"
