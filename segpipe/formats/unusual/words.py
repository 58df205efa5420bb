"""Words of findings: what pixels hold, and what was expected."""

import numpy as np

from segpipe.formats.unusual.values import Channel, Expected, Values


def holds(values: Values, expected: Expected) -> str:
    """Values of the worst channel, and what they should be."""
    worst = 0 if expected.mean is None else int(np.abs(expected.deviations(values.mid)).argmax())
    seen = f"{expected.name(worst)} holds {values.low[worst]:.4g} to {values.high[worst]:.4g}"
    return seen if expected.mean is None else f"{seen}, its mean should be {_mean_words(expected, worst)}"


def expected_words(expected: Expected, channel: int) -> str:
    """The mean, with its standard deviation, that the contract expects of a channel."""
    return f"a mean of {_mean_words(expected, channel)} in {expected.name(channel)}"


def _mean_words(expected: Expected, channel: int) -> str:
    spread = expected.std[channel] / abs(expected.gain[channel])
    return f"{expected.stored_mean[channel]:.4g} ± {spread:.3g}"


def large_words(values: Values, expected: Expected) -> str:
    """How far the medians lie above what the contract expects."""
    if expected.mean is None:
        full = "full reflectance" if expected.contract.layout.ndim == 2 else "full scale"
        return f"scaled to {expected.scaled(values.mid).max():.4g} where the contract's scale makes 1 of {full}"
    worst = int(np.abs(expected.deviations(values.mid)).argmax())
    distance = expected.deviations(values.mid)[worst]
    return (
        f"{distance:,.0f} standard deviations from the contract's mean in {expected.name(worst)}, {holds(values, expected)}"
    )


def scale_words(scale: Channel) -> str:
    """A scale as TOML."""
    numbers = [f"{value:.6g}" for value in scale]
    return numbers[0] if len(set(numbers)) == 1 else f"[{', '.join(numbers)}]"
