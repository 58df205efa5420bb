"""A run: its model, settings and output folder, and what follows from them for each case."""

from dataclasses import dataclass, replace

from segpipe.formats.banded import bands_from
from segpipe.formats.case import Case, CaseSelection
from segpipe.formats.channels import channels_of
from segpipe.formats.registry import FORMATS
from segpipe.formats.sink import Derived
from segpipe.network.spec import ModelSpec
from segpipe.overrides import Overrides
from segpipe.results.cleaning.rule import Cleaning
from segpipe.results.lesions.rule import LesionRule, rule_of
from segpipe.results.schema import Values
from segpipe.settings import Settings
from segpipe.storage import Store
from segpipe.storage.stores import store_at
from segpipe.vectors.area import Area

SEG = "binary"
"""``seg`` of records that do not say."""


@dataclass(frozen=True, slots=True)
class Run:
    """The model, settings and output folder of a run; picklable, and everything that a worker needs."""

    model: ModelSpec
    settings: Settings
    aoi: Area | None = None
    """The area of interest, which every process of the run knows."""

    @property
    def overrides(self) -> Overrides:
        """The user's statements about the input files, and which of their pixels count."""
        return replace(self.settings.overrides, aoi=self.aoi)

    @property
    def output(self) -> Store:
        """The store of masks, records and tables."""
        return store_at(self.settings.output)

    @property
    def choice(self) -> CaseSelection:
        """The rules of the settings and the model that select and name the cases of the input."""
        channels = channels_of(self.model.contract, self.settings.channels)
        bands = bands_from(self.settings.bands_from, self.model.contract)
        return CaseSelection(
            self.settings.series, self.settings.case_name, channels, bands, self.settings.overrides.validity
        )

    @property
    def styled(self) -> bool:
        """Whether styles are requested and masks have one band, which a style needs."""
        contract = self.model.contract
        return self.settings.style is not None and (contract.task != "multilabel" or len(contract.classes) == 1)

    def styles(self, case: Case) -> bool:
        """Whether a style is written beside the mask of a case."""
        return self.styled and FORMATS[case.format].style is not None

    @property
    def lesions(self) -> LesionRule | None:
        """Rule of the measured components; None if none are measured."""
        return rule_of(self.settings, self.model.contract)

    @property
    def cleaning(self) -> Cleaning | None:
        """How labels are cleaned before they are counted; None if they stay as they are."""
        return Cleaning.of(self.settings.majority, self.settings.sieve)

    @property
    def derived(self) -> Derived:
        """Files to derive from each mask, for formats that have them."""
        names = ", ".join(one.path.name for one in self.model.members)
        return Derived(self.settings.seg, self.settings.report is not None, names)

    @property
    def label_settings(self) -> Values:
        """The settings that change labels."""
        bands = self.settings.bands
        # records of versions without them still count as done
        later: Values = {"resample": True} if self.settings.resample else {}
        if self.settings.channels is not None:
            order = {name: k for k, name in enumerate(self.model.contract.channel_names or ())}
            each = sorted(self.settings.channels, key=lambda one: order.get(one[0], 0))  # as the flag orders them otherwise
            later |= {"channels": [list(one) for one in each]}
        if self.settings.bands_from is not None:
            later |= {"bands_from": self.settings.bands_from}
        if self.settings.band_resampling != "bilinear":
            later |= {"band_resampling": self.settings.band_resampling}
        if self.settings.tta != "none":
            later |= {"tta": self.settings.tta} | _flips(self.model)
        if self.settings.like is not None:
            later |= {"like": self.settings.like}
        if (cleaning := self.cleaning) is not None:
            later |= cleaning.as_json()
        if (validity := self.settings.overrides.validity) is not None:
            later |= {"validity": str(validity)}
        if self.aoi is not None:
            # masks of versions in which the network did not see what lies outside have other labels
            later |= {"aoi": self.aoi.digest, "aoi_sees_outside": True}
        return {
            **_network_settings(self.model),
            "bands": None if bands is None else list(bands),
            "nodata": self.settings.nodata,
            "ignore_alpha": self.settings.ignore_alpha,
            "crs": self.settings.crs,
            **later,
        }

    def settings_of(self, case: Case) -> Values:
        """The settings that change labels, or the files that the case's format makes of them."""
        settings, later = self.settings, dict[str, object]()
        if FORMATS[case.format].derives:
            later |= {"seg": settings.seg} if settings.seg != SEG else {}
            later |= {"report": True} if settings.report is not None else {}
        return self.label_settings | later


def _network_settings(model: ModelSpec) -> Values:
    """The settings that change the scores of a network, or of each network of a list."""
    if model.listed:
        return {"models": {one.name: _network_settings(one.spec) for one in model.listed}}
    return {
        "tile": list(model.tiling.input),
        "overlap": list(model.tiling.overlap),
        "align": list(model.tiling.align),
        "blend": model.tiling.blend,
        "blend_on": model.blend_on,
    }


def _flips(model: ModelSpec) -> Values:
    """The axes that flips reverse; the hash of a list covers them, since the contracts of its models state them."""
    return {} if model.listed else {"flips": list(model.contract.flip_axes)}
