"""The model of a run: ONNX files, or a list of models whose label maps are joined, with the classes of the joined map."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from segpipe.contract import Contract
from segpipe.contract.contract import JOINED
from segpipe.contract.keys import SegmentationClass
from segpipe.errors import SettingsError
from segpipe.geometry.layout import Layout
from segpipe.network.model_list import BACKGROUND, ListEntry, ModelList, is_background, is_list, nearest, read_list
from segpipe.network.read import read_spec
from segpipe.network.spec import ListMember, ModelSpec
from segpipe.settings import Settings
from segpipe.storage.invalid import readable

NAMING = ("nnunet",)
"""Keys of ``provenance`` by which files are grouped to cases."""

MODELS_FOLDER = ".models"
"""Hidden folder of the output with the run of each model of a list."""


def spec_of_run(settings: Settings) -> ModelSpec:
    """The model that a run is for: ``read_spec``, or the models of a list and their joined classes.

    Raises:
        ModelError, ContractError, DeviceError, SettingsError: something does not fit; the message says what to mend.
    """
    return joined_spec(settings) if is_list(settings.model) else read_spec(settings)


def joined_spec(settings: Settings) -> ModelSpec:
    """One spec for a list: its contract has the joined classes, ``listed`` the models.

    Raises:
        SettingsError: the list and its models do not fit each other, or a setting does not fit a list.
    """
    path = settings.model[0]
    _check_settings(settings, path)
    models = read_list(path)
    specs = [read_spec(_settings_of_entry(settings, path, entry)) for entry in models.models]
    names = [list(_joined_names(path, entry, spec)) for entry, spec in zip(models.models, specs, strict=True)]
    classes = _classes(path, models, specs, names)
    ids = {one.name: one.id for one in classes}
    listed = tuple(
        ListMember(entry.title, spec, tuple((label, ids[name]) for label, name in own))
        for entry, spec, own in zip(models.models, specs, names, strict=True)
    )
    contract = _contract(path, specs, classes, [one.name for one in listed])
    return replace(
        specs[0],
        path=path,
        files=(path, *(file for spec in specs for file in spec.files)),
        sha256=_digest(listed, contract),
        contract=contract,
        contract_origin=str(path),
        blend_on="labels",
        folds=(),
        listed=listed,
        like=None,
        input_dtype="float32",
    )


def _check_settings(settings: Settings, path: Path) -> None:
    """Refuse settings that are for one network."""
    given = {"contract": settings.contract, "audit": settings.audit, "profile": settings.profile or None}
    for key, value in given.items():
        if value is not None:
            raise SettingsError(
                f"{key} is for one model, and {path} is a list of them: leave --{key} out, or run one of its models"
            )


def _settings_of_entry(settings: Settings, path: Path, entry: ListEntry) -> Settings:
    return settings_of_model(settings, entry.title, [path.parent / file for file in entry.file])


def settings_of_listed(settings: Settings, listed: ListMember) -> Settings:
    """Settings of the run of one model of a list."""
    return settings_of_model(settings, listed.name, [one.path for one in listed.spec.members])


def settings_of_model(settings: Settings, name: str, files: Sequence[Path]) -> Settings:
    """Settings of a run that writes one model's labels alone, as they are, into a folder of its own."""
    own = Settings.model_fields
    later = (
        "lesions",
        "min_size",
        "instances",
        "per_class",
        "report",
        "style",
        "zones",
        "zone_id",
        "zones_layer",
        "zones_out",
    )
    reset = {key: own[key].default for key in (*later, "majority", "sieve", "overlap_rule")}
    output = f"{settings.output.rstrip('/')}/{MODELS_FOLDER}/{name}"
    return settings.model_copy(update={**reset, "seg": "none", "model": tuple(files), "output": output})


def _joined_names(path: Path, entry: ListEntry, spec: ModelSpec) -> Iterator[tuple[int, str]]:
    """Each label of a model's masks, or each band of independent classes, with the name of its joined class.

    Raises:
        SettingsError: the list names a class that the model has not, or the model has no background.
    """
    classes = spec.contract.mask_classes
    own = [one.name for one in classes]
    for name in entry.classes:
        if name not in own:
            raise SettingsError(
                f'{path}: {entry.title} has no class "{name}"{nearest(name, own)}: correct its classes in the list'
            )
    several = spec.contract.task == "multilabel"
    if not several and not any(is_background(entry.joined(name)) for name in own):
        raise SettingsError(
            f"{path}: {entry.title} has no class called background, and would claim every voxel: leave one of its classes "
            f'out, such as classes = {{ "{own[0]}" = "" }}'
        )
    for band, one in enumerate(classes):
        yield (band if several else one.id), entry.joined(one.name)


Names = Sequence[Sequence[tuple[int, str]]]


def _classes(path: Path, models: ModelList, specs: Sequence[ModelSpec], names: Names) -> list[SegmentationClass]:
    """The classes of the joined map, background first.

    Raises:
        SettingsError: two models give one class, or the table of the list lacks a class or has another.
    """
    given = _givers(path, models, names)
    table = {one.name: one for one in models.classes if one.id}
    if table:
        _check_table(path, given, table)
    numbered = table or {name: SegmentationClass(id=k, name=name) for k, name in enumerate(given, 1)}
    background = next((one for one in models.classes if not one.id), SegmentationClass(id=0, name=BACKGROUND))
    background = background.model_copy(update={"name": BACKGROUND})
    looks = _looks(models, specs)
    classes = [one if one.color else one.model_copy(update=looks.get(one.name, {})) for one in numbered.values()]
    return [background, *sorted(classes, key=lambda one: one.id)]


def _givers(path: Path, models: ModelList, names: Names) -> dict[str, str]:
    """The model that gives each joined class, in their order."""
    given: dict[str, str] = {}
    for entry, own in zip(models.models, names, strict=True):
        for name in dict.fromkeys(name for _, name in own if name != BACKGROUND):
            if (other := given.setdefault(name, entry.title)) != entry.title:
                raise SettingsError(
                    f'{path}: a class must come from one model, and {other} and {entry.title} both give "{name}": rename '
                    f'it in one of them, as classes = {{ "{name}" = "other name" }}, or leave it out with ""'
                )
    return given


def _check_table(path: Path, given: dict[str, str], table: dict[str, SegmentationClass]) -> None:
    for name, title in given.items():
        if name not in table:
            raise SettingsError(
                f'{path}: [[classes]] must have every class of the models, and lacks "{name}" of {title}'
                f'{nearest(name, table)}: add it, or leave the class out with classes = {{ "{name}" = "" }} of {title}'
            )
    for name in table:
        if name not in given:
            raise SettingsError(
                f'{path}: [[classes]] has "{name}", which no model gives{nearest(name, given)}: correct or remove it'
            )


def _looks(models: ModelList, specs: Sequence[ModelSpec]) -> dict[str, dict[str, object]]:
    """Colour and codes of each joined class, from the model that gives it."""
    return {
        entry.joined(one.name): {"color": one.color, "snomed": one.snomed}
        for entry, spec in zip(models.models, specs, strict=True)
        for one in spec.contract.mask_classes
    }


def _contract(
    path: Path, specs: Sequence[ModelSpec], classes: Sequence[SegmentationClass], names: Sequence[str]
) -> Contract:
    """A contract of labels on the case's own grid; channels, and so names of cases, are those of the first model."""
    first = specs[0].contract.provenance
    volumes = any(spec.contract.layout.is_volume for spec in specs)
    values = {
        "version": 1,
        "channels": specs[0].contract.channels,
        "normalize": "none",
        "layout": Layout.NCDHW if volumes else Layout.NCHW,
        "activation": "labels",
        "task": "multiclass",
        "classes": list(classes),
        "provenance": {JOINED: list(names), **{key: first[key] for key in NAMING if key in first}},
    }
    try:
        return Contract.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{path}: {readable(error)}") from None


def _digest(listed: Sequence[ListMember], contract: Contract) -> str:
    """Hash of all that the joined labels depend on: each model, its place in the order, and the tables of classes."""
    basis = [[one.spec.sha256, list(map(list, one.ids))] for one in listed]
    return hashlib.sha256(f"{json.dumps(basis)} {contract.model_dump_json()}".encode()).hexdigest()
