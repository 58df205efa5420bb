"""Read a model file and its contract, and check them against each other before any case is opened."""

from dataclasses import replace
from pathlib import Path

import onnx

from segpipe.contract import Contract
from segpipe.errors import ModelError, SettingsError
from segpipe.geometry.windows import Tiling
from segpipe.network.averaging import AS_IT_IS, Axes, flips_over
from segpipe.network.conversion import older_form
from segpipe.network.device import ON_HOST, Kind, Options, check_runtime, resolve_device
from segpipe.network.ending import ending_of
from segpipe.network.ensemble import ensemble
from segpipe.network.feeds import feeds_of
from segpipe.network.fit import check_channels, check_scaling, choose, find_contract, image_of
from segpipe.network.form import check_graph, is_quantised, may_drop
from segpipe.network.model_file import check_lengths, digest, external_data, read_model
from segpipe.network.openvino_session import Engine, Precision, openvino_device, resolve_engine
from segpipe.network.scores_needed import check_scores_needed
from segpipe.network.signature import TensorSpec, signature
from segpipe.network.spec import Blended, ModelSpec
from segpipe.network.tiling import resolve_tiling
from segpipe.settings import Settings


def read_spec(settings: Settings) -> ModelSpec:
    """Read the model files and their contracts, and check them against each other and the settings.

    Raises:
        ModelError, ContractError, DeviceError, SettingsError: something does not fit; the message says what to mend.
    """
    check_runtime()
    device, device_reason = resolve_device(settings.device)
    models = [_read(settings, path, device, device_reason) for path in settings.model]
    spec = replace(ensemble(models), flips=_resolve_flips(settings, models[0].contract))
    return _as_nnunet(spec, settings) if settings.like == "nnunet" else spec


def _read(settings: Settings, path: Path, device: Kind, device_reason: str) -> ModelSpec:
    """Read one model file with its contract, and choose its tiling, batch and engine."""
    proto = read_model(path)
    inputs, outputs = signature(proto)
    contract, origin = find_contract(settings, path, proto)
    image = image_of(inputs, contract, path)
    scores = choose(outputs, contract.output, "output", path)
    check_graph(proto, path, image, scores, contract)
    check_scores_needed(settings, contract, path)
    check_channels(image, contract, path)
    check_scaling(image, contract, path)
    feeds = feeds_of(contract, image, inputs, path)
    files = (path, *external_data(path, proto))
    check_lengths(path, proto)
    return ModelSpec(
        path=path,
        files=files,
        sha256=digest(files, contract),
        contract=contract,
        contract_origin=origin,
        tiling=resolve_tiling(settings, contract, image, proto, path),
        blend_on=resolve_blend_on(settings, contract),
        batch=_resolve_batch(settings, image, device),
        device=device,
        device_reason=device_reason,
        input=image.name,
        output=scores.name,
        input_dtype=str(image.dtype),
        ending=ending_of(proto, scores.name),
        feeds=feeds,
        older=older_form(proto, path),
        batch_is_fixed=image.shape[0] is not None,
        may_drop=may_drop(proto),
        options=resolve_options(settings, device),
        engine=_resolve_engine(settings, device, proto, path),
        min_agreement=settings.min_agreement,
        threads=settings.threads or 1,
    )


def _as_nnunet(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """The same model, with the windows and weights of nnU-Net's predictor.

    Raises:
        SettingsError: the model is not nnU-Net's, or a setting contradicts it.
    """
    plans = spec.contract.provenance.get("nnunet")
    named = ("resampling_fn_data", "resampling_fn_probabilities")
    if not isinstance(plans, dict) or any(plans.get(key) != NNUNET_RESAMPLING for key in named):
        raise SettingsError(
            f"like nnunet needs a model that segpipe export nnunet made of plans with nnU-Net's default resampling, got "
            f"{spec.title}: leave --like out"
        )
    if set_too := [f"--{key.replace('_', '-')}" for key in ("tile", "overlap", "blend_on") if getattr(settings, key)]:
        raise SettingsError(f"like nnunet takes nnU-Net's own windows, got {', '.join(set_too)} as well: leave one out")
    if spec.device != "cpu":
        raise SettingsError(f"like nnunet is a comparison on the CPU, got device {spec.device}: add --device cpu")
    tile = spec.tiling.tile
    tiling = Tiling(tile, tuple(size // 2 for size in tile), (1,) * len(tile), "nnunet")
    return replace(spec, tiling=tiling, like="nnunet")


NNUNET_RESAMPLING = "resample_data_or_seg_to_shape"
"""nnU-Net's function for images and scores, unless the planner is another."""


def resolve_blend_on(settings: Settings, contract: Contract) -> Blended:
    """Blend logits unless asked otherwise; a model that gives probabilities has no logits to blend, or labels no scores."""
    if contract.activation == "labels":
        return "labels"
    if contract.activation != "none":
        return settings.blend_on or "logits"
    if settings.blend_on == "logits":
        raise SettingsError(
            'blend_on logits needs a model that gives logits, and the contract says activation = "none": '
            "its outputs are probabilities already, so leave --blend-on out"
        )
    return "probabilities"


def _resolve_flips(settings: Settings, contract: Contract) -> tuple[Axes, ...]:
    if settings.tta == "none":
        return AS_IT_IS
    if not contract.flip_axes:
        raise SettingsError("tta flips needs axes to flip, and the contract says flips = []: leave --tta out")
    return flips_over(contract.flip_axes)


def _resolve_batch(settings: Settings, image: TensorSpec, device: Kind) -> int:
    fixed = image.shape[0]
    if fixed is not None and settings.batch not in (None, fixed):
        raise SettingsError(f"the model's batch is fixed at {fixed}, got --batch {settings.batch}: leave --batch out")
    return fixed or settings.batch or (1 if device in ON_HOST else 8)


def resolve_options(settings: Settings, device: Kind) -> Options:
    """Numerical options of a GPU; the CPU has none."""
    if device in ON_HOST:
        asked = [f"--{name}" for name in ("tf32", "nhwc") if getattr(settings, name)]
        if asked:
            raise SettingsError(
                f"{' and '.join(asked)} is for an NVIDIA GPU, got device {device}: leave it out, or take --device cuda"
            )
        return Options()
    return Options(settings.tf32, settings.nhwc)


def _resolve_engine(settings: Settings, device: Kind, proto: onnx.ModelProto, path: Path) -> Engine | None:
    """OpenVINO in the requested precision, if it is the device; ``auto`` is fp32, or int8 for a quantised file.

    Raises:
        SettingsError: file or device do not fit the precision.
        DeviceError: OpenVINO or its device is missing.
    """
    quantised, asked = is_quantised(proto), settings.precision
    own: Precision = "int8" if quantised else "fp32"
    if asked == "bf16" and device != "openvino":
        raise SettingsError(f"precision bf16 needs OpenVINO, got device {device}: add --device openvino")
    if asked != "auto" and (asked == "int8") != quantised:
        mend = (
            f"leave --precision out, or take the file in {asked}"
            if quantised
            else "segpipe export --precision int8 makes one"
        )
        raise SettingsError(
            f"precision {asked} needs a file in {'int8' if asked == 'int8' else 'floats'}, got {path} in {own}: {mend}"
        )
    if device != "openvino":
        return None
    return resolve_engine(openvino_device(settings.device), own if asked == "auto" else asked)


def check_unchanged(spec: ModelSpec) -> None:
    """Check that a model has not changed since the run was planned, perhaps hours before a worker loads it."""
    for model in spec.members:
        if digest(model.files, model.contract) != model.sha256:
            beside = "".join(f" or {file}" for file in model.files[1:])
            raise ModelError(
                f"{model.path}{beside} has changed since this run began: run the same command again, for the new model"
            )
