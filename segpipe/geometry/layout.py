"""The axis order of a network's input and output."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

Size = TypeVar("Size", int, int | None)


class Layout(StrEnum):
    """Batch N, channels C, and the spatial axes: depth, height and width of volumes, height and width of images."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NCDHW = "NCDHW"
    NDHWC = "NDHWC"

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self) - 2

    @property
    def channel_axis(self) -> int:
        """Position of the channels among all axes."""
        return self.index("C")

    @property
    def channels_last(self) -> bool:
        """Whether the channels follow the spatial axes."""
        return self.channel_axis > 1

    @property
    def is_volume(self) -> bool:
        """Whether there are three spatial axes."""
        return self.ndim == 3

    @property
    def from_first(self) -> tuple[int, ...]:
        """Permutation that brings ``(N, C, *spatial)`` into this order."""
        spatial = range(2, self.ndim + 2)
        return (0, *spatial, 1) if self.channels_last else (0, 1, *spatial)

    @property
    def to_first(self) -> tuple[int, ...]:
        """Permutation that brings an array in this order to ``(N, C, *spatial)``."""
        last = self.ndim + 1
        return (0, last, *range(1, last)) if self.channels_last else (0, *range(1, last + 1))

    def named(self, channel: str) -> str:
        """The names of the axes, for a message.

        >>> Layout.NDHWC.named("channels")
        '(N, d, h, w, channels)'
        """
        return f"({', '.join(channel if axis == 'C' else axis if axis == 'N' else axis.lower() for axis in self)})"

    def shape(self, first: Sequence[Size]) -> tuple[Size, ...]:
        """Reorder a shape ``(N, C, *spatial)`` to this layout.

        >>> Layout.NHWC.shape((1, 3, 64, 96))
        (1, 64, 96, 3)
        """
        return tuple(first[axis] for axis in self.from_first)

    def channels(self, shape: Sequence[Size]) -> Size:
        """Size of the channel axis of an array in this layout."""
        return shape[self.channel_axis]

    def spatial(self, shape: Sequence[Size]) -> tuple[Size, ...]:
        """Sizes of the spatial axes of an array in this layout."""
        return tuple(shape[axis] for axis in self.to_first[2:])

    def has_class_axis(self, shape: Sequence[int | None]) -> bool | None:
        """Whether scores of this shape have a class axis, which is optional for one class; None for other ranks."""
        return {self.ndim + 1: False, self.ndim + 2: True}.get(len(shape))


def likely_layout(shape: Sequence[int | None]) -> Layout:
    """Guess the layout of an image input: the channel axis is the only one of fixed size, or the smaller of two."""
    last = shape[-1] is not None and (shape[1] is None or shape[-1] < shape[1]) if len(shape) in (4, 5) else False
    if len(shape) == 5:
        return Layout.NDHWC if last else Layout.NCDHW
    return Layout.NHWC if last else Layout.NCHW
