"""Ensembles, such as the folds of a cross-validation: check that the models agree, and make one spec of them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segpipe.contract import Contract
from segpipe.errors import ContractError, ModelError

if TYPE_CHECKING:
    from segpipe.network.spec import ModelSpec

OWN = frozenset({"input", "output", "provenance", "equivariant", "tile", "overlap", "align", "margin"})
"""Keys that may differ: tensor names, provenance, and tiling, which is compared after the settings are applied."""


def ensemble(models: Sequence["ModelSpec"]) -> "ModelSpec":
    """One spec for all models, in their order; a single model is returned as it is.

    Raises:
        ContractError: contracts or tilings differ; the message has the key and both values.
        ModelError: graphs have batches of different fixed sizes, or two files have one content.
    """
    first, *others = models
    if not others:
        return first
    for other in others:
        _check_agreement(first, other)
    _check_contents(models)
    return replace(
        first,
        files=tuple(file for model in models for file in model.files),
        sha256=hashlib.sha256("".join(model.sha256 for model in models).encode()).hexdigest(),
        batch=_batch(models),
        batch_is_fixed=any(model.batch_is_fixed for model in models),
        folds=tuple(models),
    )


def tried(spec: "ModelSpec", models: Sequence["ModelSpec"]) -> "ModelSpec":
    """Add the results of the models' trials to their spec: memory, and the batch that suits all.

    All weights are in memory at once; the models run one after the other and share an arena.

    Raises:
        ModelError: scores of one model depend on the batch, and the batch of another is fixed.
    """
    batch = min(model.batch for model in models)
    for model in models:
        if model.batch_is_fixed and model.batch > batch:
            raise ModelError(
                f"models whose scores are averaged must take one batch, and one of them needs batches of {batch}, while "
                f"that of {model.path} is fixed at {model.batch}: export it with a dynamic batch axis"
            )
    return replace(
        spec,
        batch=batch,
        weights_mb=sum(model.weights_mb for model in models),
        network_mb=max(model.network_mb for model in models),
        trial_shapes=models[0].trial_shapes,
        output_mb=min(model.output_mb for model in models),
        memory=models[0].memory,
        agreement=min((m.agreement for m in models if m.agreement is not None), default=None),
        folds=tuple(models) if spec.folds else (),
    )


def _check_contents(models: Sequence["ModelSpec"]) -> None:
    seen: dict[str, ModelSpec] = {}
    for model in models:
        if (same := seen.setdefault(model.sha256, model)) is not model:
            raise ModelError(
                f"models whose scores are averaged must differ, and {same.path} and {model.path} have one content: "
                "name each once"
            )


def _check_agreement(first: "ModelSpec", other: "ModelSpec") -> None:
    for key, one, two in _differences(first, other):
        raise ContractError(
            f"models whose scores are averaged must agree in {key}, got {one} in {first.path} and {two} in {other.path}: "
            "name models of one training, with one contract"
        )


def _differences(first: "ModelSpec", other: "ModelSpec") -> Iterator[tuple[str, str, str]]:
    """Yield each key that differs, with both values as a contract has them."""
    one, two = _keys(first.contract), _keys(other.contract)
    yield from ((key, _shown(one[key]), _shown(two[key])) for key in one if one[key] != two[key])
    if first.engine != other.engine:
        yield "precision", str(first.engine), str(other.engine)
    if first.input_dtype != other.input_dtype:
        yield "the type of their input", first.input_dtype, other.input_dtype
    for key in ("tile", "overlap", "align", "margin"):
        a, b = getattr(first.tiling, key), getattr(other.tiling, key)
        if a != b:
            yield key, _shown(list(a)), _shown(list(b))


def _keys(contract: Contract) -> dict[str, Any]:
    keys = [key for key in type(contract).model_fields if key not in OWN]
    return {key: getattr(contract, key) for key in keys} | {"flips": list(contract.flip_axes)}


def _shown(value: Any) -> str:
    """
    >>> _shown("softmax"), _shown([64, 64]), _shown(None)
    ('"softmax"', '[64, 64]', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, dict):
        return json.dumps({name: one.model_dump() for name, one in value.items()})
    if isinstance(value, list) and value and hasattr(value[0], "id"):
        return "[" + ", ".join(f"{one.id} {one.name}" for one in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _batch(models: Sequence["ModelSpec"]) -> int:
    """The batch size that all models take: the fixed one, if a graph has one."""
    fixed = [model for model in models if model.batch_is_fixed]
    for model in fixed:
        if model.batch != fixed[0].batch:
            raise ModelError(
                f"models whose scores are averaged must take one batch, got one fixed at {fixed[0].batch} in "
                f"{fixed[0].path} and at {model.batch} in {model.path}: export them with a dynamic batch axis"
            )
    return (fixed or models)[0].batch
