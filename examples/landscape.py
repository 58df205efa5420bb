"""A synthetic agricultural landscape: what covers the ground, and how a 10 m satellite sees it. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
Shape = tuple[int, int]

BANDS = ("B02", "B03", "B04", "B08")
NODATA = 0
UNKNOWN = 255
WATER, FOREST, BUILT, GRASS, CEREALS, MAIZE, RAPE = range(7)


@dataclass(frozen=True)
class Cover:
    """One land cover: its reflectance in `BANDS` early and late in the season, and the strength of its textures."""

    name: str
    color: str
    early: tuple[float, float, float, float]
    late: tuple[float, float, float, float]
    mottle: float  # patches of some 80 m
    grain: float  # differences from pixel to pixel
    rows: float  # stripes along the direction of work
    period: float = 1.0  # pixels from one stripe to the next


COVERS = (
    Cover("water", "#3b7dc4", (0.052, 0.068, 0.050, 0.030), (0.034, 0.046, 0.032, 0.020), 0.08, 0.02, 0.0),
    Cover("forest", "#1f6b3a", (0.026, 0.043, 0.027, 0.250), (0.036, 0.058, 0.040, 0.330), 0.08, 0.17, 0.0),
    Cover("built-up", "#c8423c", (0.076, 0.094, 0.106, 0.180), (0.112, 0.132, 0.152, 0.250), 0.08, 0.14, 0.0),
    Cover("grassland", "#a5d46a", (0.040, 0.068, 0.044, 0.370), (0.054, 0.086, 0.080, 0.290), 0.17, 0.05, 0.0),
    Cover("cereals", "#f0d98c", (0.042, 0.070, 0.050, 0.350), (0.078, 0.112, 0.138, 0.270), 0.06, 0.03, 0.07, 3.4),
    Cover("maize", "#e8963a", (0.080, 0.100, 0.120, 0.205), (0.042, 0.069, 0.052, 0.345), 0.07, 0.03, 0.07, 6.5),
    Cover("rapeseed", "#f4e01f", (0.046, 0.084, 0.056, 0.385), (0.060, 0.126, 0.118, 0.365), 0.05, 0.08, 0.0),
)


@dataclass(frozen=True)
class Land:
    """The ground, each plane of shape ``(rows, cols)``: cover ids, parcel ids, and the direction of work in radians."""

    cover: NDArray[np.uint8]
    parcel: NDArray[np.intp]
    heading: Floats


def noise(rng: np.random.Generator, shape: Shape, scale: float, slope: float = 2.0) -> Floats:
    """Correlated noise of mean 0 and deviation 1; ``scale`` in pixels, ``slope`` 2 is ragged and 6 is smooth."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * (1 + (frequency * 2 * scale) ** 2) ** (-slope / 2)
    field = np.fft.irfft2(spectrum, shape)
    return (field - field.mean()) / field.std()


def rotate(rows: NDArray[np.number], cols: NDArray[np.number], angle: Floats | float) -> tuple[Floats, Floats]:
    """Coordinates along and across ``angle``."""
    return rows * np.sin(angle) + cols * np.cos(angle), rows * np.cos(angle) - cols * np.sin(angle)


def stroke(shape: Shape, path: Floats, radius: Floats | float) -> Mask:
    """Pixels within ``radius`` of the points ``path`` of shape ``(points, 2)``, which lie well under it apart."""
    radius = np.broadcast_to(radius, len(path))
    reach = int(np.ceil(radius.max())) + 1
    offset = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), -1).reshape(-1, 2)
    pixel = np.rint(path).astype(int)[:, None] + offset
    near = np.hypot(*np.moveaxis(pixel - path[:, None], -1, 0)) <= radius[:, None]
    rows, cols = pixel[near & ((pixel >= 0) & (pixel < shape)).all(-1)].T
    mask = np.zeros(shape, bool)
    mask[rows, cols] = True
    return mask


def districts(rng: np.random.Generator, shape: Shape, pitch: float = 115) -> NDArray[np.intp]:
    """Warped Voronoi cells about ``pitch`` pixels wide: the land between two country roads."""
    rows, cols = (axis + 14 * noise(rng, shape, 60, 6) for axis in np.indices(shape))
    lattice = np.stack(np.meshgrid(*(np.arange(-0.5, side / pitch + 1) for side in shape), indexing="ij"), -1)
    seeds = (lattice.reshape(-1, 2) + rng.uniform(-0.42, 0.42, (lattice[..., 0].size, 2))) * pitch
    return np.argmin([np.hypot(rows - row, cols - col) for row, col in seeds], axis=0)


def borders(ids: NDArray[np.integer]) -> Mask:
    """Pixels whose lower or right neighbour has another id."""
    edge = np.zeros(ids.shape, bool)
    edge[:-1] |= ids[:-1] != ids[1:]
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    return edge


def cut(rng: np.random.Generator, spot: Floats, aspect: float) -> Mask:
    """One side of a slightly slanted cut across the longer axis; ``spot`` has shape ``(2, pixels)``."""
    along, across = np.ptp(spot, axis=1)
    axis = int(across * aspect > along)
    depth = spot[axis] + rng.normal(0, 0.05) * spot[1 - axis]
    return depth < np.quantile(depth, rng.uniform(0.33, 0.67))


def subdivide(rng: np.random.Generator, spot: Floats) -> list[NDArray[np.intp]]:
    """Indices of the parcels that cutting the pixels ``spot``, shape ``(2, pixels)``, leaves; each pixel is in one."""
    aspect, size = rng.uniform(1.0, 3.2), rng.lognormal(np.log(700), 0.35)
    waiting, done = [np.arange(spot.shape[1])], []
    while waiting:
        part = waiting.pop()
        if len(part) < size * rng.uniform(0.5, 2.2):
            done.append(part)
            continue
        side = cut(rng, spot[:, part], aspect)
        waiting += [part[side], part[~side]]
    return done


def parcels(rng: np.random.Generator, district: NDArray[np.intp]) -> tuple[NDArray[np.intp], Floats]:
    """Parcel ids and headings; the parcels of one district share two perpendicular directions."""
    parcel, heading = np.zeros(district.shape, np.intp), np.zeros(district.shape)
    count, region = 0, rng.uniform(0, np.pi)
    for place in np.unique(district):
        rows, cols = np.nonzero(district == place)
        angle = region + rng.normal(0, 0.5)
        for part in subdivide(rng, np.stack(rotate(rows, cols, angle))):
            parcel[rows[part], cols[part]] = count
            heading[rows[part], cols[part]] = angle + (rng.random() < 0.15) * np.pi / 2
            count += 1
    return parcel, heading


def meander(rng: np.random.Generator, shape: Shape) -> Floats:
    """The course of a river through the scene as points half a pixel apart, shape ``(points, 2)``."""
    step = np.arange(0, 5 * max(shape), 0.5)
    swing = 1.15 * np.sin(2 * np.pi * step / rng.uniform(150, 230) + rng.uniform(0, 7))
    wander = 0.55 * noise(rng, (1, step.size), 260, 6)[0]
    course = 0.5 * np.cumsum(np.stack([np.cos(swing + wander), np.sin(swing + wander)], -1), axis=0)
    middle = course - course[len(course) // 2] + np.array(shape) * rng.uniform(0.3, 0.7, 2)
    return np.stack(rotate(*(middle - np.array(shape) / 2).T, rng.uniform(0, 2 * np.pi)), -1) + np.array(shape) / 2


def lake(rng: np.random.Generator, shape: Shape) -> Mask:
    """A body of water with an uneven shore."""
    row, col = rng.uniform(0.12, 0.88, 2) * shape
    rows, cols = np.indices(shape)
    along, across = rotate(rows - row, cols - col, rng.uniform(0, np.pi))
    return np.hypot(along / rng.uniform(1.3, 2.2), across) < rng.uniform(11, 25) * (1 + 0.3 * noise(rng, shape, 16, 3))


def roads(rng: np.random.Generator, district: NDArray[np.intp]) -> Mask:
    """Roads 2 to 4 pixels wide along most of the borders between districts."""
    edge, padded = np.argwhere(borders(district)), np.pad(district, (0, 1), mode="edge")
    sides = np.stack([padded[tuple((edge + step).T)] for step in ((0, 0), (1, 0), (0, 1))])
    _, road = np.unique(np.stack([sides.min(0), sides.max(0)]), axis=1, return_inverse=True)
    width = rng.choice([0.0, 1.1, 1.5, 1.9], road.max() + 1, p=[0.25, 0.4, 0.25, 0.1])[road]
    return stroke(district.shape, edge[width > 0] + 0.5, width[width > 0])


def junctions(district: NDArray[np.intp]) -> NDArray[np.intp]:
    """Places where three districts meet, shape ``(places, 2)``."""
    corner = np.sort(np.stack([district[:-1, :-1], district[1:, :-1], district[:-1, 1:], district[1:, 1:]]), axis=0)
    return np.argwhere((np.diff(corner, axis=0) != 0).sum(0) >= 2)


def houses(rng: np.random.Generator, shape: Shape, center: Floats, radius: float) -> tuple[Mask, Mask]:
    """A settlement's whole ground, and its buildings and streets."""
    rows, cols = np.indices(shape)
    along, across = rotate(rows - center[0], cols - center[1], rng.uniform(0, np.pi))
    along = along + 2 * noise(rng, shape, 40, 6)
    ground = np.hypot(along, across * rng.uniform(1.0, 1.5)) < radius * (1 + 0.22 * noise(rng, shape, 12, 3))
    lot = np.stack([along // 7, across // 6]).astype(int) % 64
    wide, deep, taken = rng.uniform(3.4, 6.5, (64, 64)), rng.uniform(3.2, 5.5, (64, 64)), rng.random((64, 64)) < 0.75
    building = taken[*lot] & (along % 7 < wide[*lot]) & (across % 6 < deep[*lot])
    street = (across % 24 < 2.2) | (along % 35 < 2.2)
    return ground, ground & (building | street)


def settle(rng: np.random.Generator, cover: NDArray[np.uint8], district: NDArray[np.intp]) -> NDArray[np.uint8]:
    """``cover`` with villages where roads meet, and a few farms; gardens are grassland or trees."""
    places = junctions(district)
    villages = [(place, rng.uniform(17, 36)) for place in rng.permutation(places)[: max(3, len(places) // 4)]]
    farms = [(rng.uniform(0, cover.shape), rng.uniform(5, 8)) for _ in range(cover.size // 40000)]
    garden = np.where(noise(rng, cover.shape, 4) > 0.9, FOREST, GRASS)
    for center, radius in villages + farms:
        ground, built = houses(rng, cover.shape, center, radius)
        cover = np.where(built, BUILT, np.where(ground, garden, cover))
    return cover.astype(np.uint8)


def crops(rng: np.random.Generator, district: NDArray[np.intp], parcel: NDArray[np.intp]) -> NDArray[np.uint8]:
    """One cover for each parcel; a district has its own mixture of them."""
    share = np.array([rng.dirichlet(5 * np.array([0.15, 1.1, 1.5, 1.1, 0.85])) for _ in range(district.max() + 1)])
    home = np.zeros(parcel.max() + 1, np.intp)
    home[parcel.ravel()] = district.ravel()
    draw = rng.random(home.size)[:, None] > np.cumsum(share[home], axis=1)
    return np.array([FOREST, GRASS, CEREALS, MAIZE, RAPE], np.uint8)[np.minimum(draw.sum(1), 4)][parcel]


def valley(rng: np.random.Generator, cover: NDArray[np.uint8], river: Floats, width: Floats) -> NDArray[np.uint8]:
    """``cover`` with meadows, and here and there trees, along a river."""
    shape = cover.shape
    meadow = stroke(shape, river[::8], 26) & (noise(rng, shape, 20, 3) > -0.5) & (cover != FOREST)
    trees = stroke(shape, river[::4], width[::4] + 4) & (noise(rng, shape, 12) > 0.1)
    return np.where(trees, FOREST, np.where(meadow, GRASS, cover)).astype(np.uint8)


def landscape(rng: np.random.Generator, shape: Shape) -> Land:
    """Fields between roads, woods, a river with its meadows, lakes, villages; ``shape`` in pixels of 10 m."""
    district = districts(rng, shape)
    parcel, heading = parcels(rng, district)
    cover = crops(rng, district, parcel)
    cover[noise(rng, shape, 45, 2.2) > 1.15] = FOREST
    river = meander(rng, shape)
    width = 3.6 + 1.2 * noise(rng, (1, len(river)), 60, 4)[0].clip(-1.5, 1.5)
    cover = settle(rng, valley(rng, cover, river, width), district)
    cover[stroke(shape, river, width)] = WATER
    cover[roads(rng, district)] = BUILT
    for _ in range(rng.integers(1, 4)):
        cover[lake(rng, shape)] = WATER
    return Land(cover, parcel, heading)


def seasons(rng: np.random.Generator, land: Land) -> Floats:
    """How far the season is on each pixel, 0 to 1: one value for a field, a gradual one elsewhere."""
    shape, count = land.cover.shape, land.parcel.max() + 1
    field = rng.beta(1.3, 1.3, count)[land.parcel] + 0.06 * noise(rng, shape, 14)
    wild = 0.5 + 0.22 * noise(rng, shape, 25)
    return np.where(land.cover >= GRASS, field, wild).clip(0, 1)


def texture(rng: np.random.Generator, land: Land) -> Floats:
    """A factor about 1 for the brightness of each pixel: patches, grain and the stripes of field work."""
    shape = land.cover.shape
    mottle, grain, rows, period = np.array([(c.mottle, c.grain, c.rows, c.period) for c in COVERS]).T[:, land.cover]
    _, across = rotate(*np.indices(shape), land.heading)
    stripes = np.sin(2 * np.pi * (across + 0.7 * noise(rng, shape, 30, 4)) / period)
    uneven = 1 + 0.35 * noise(rng, shape, 12)
    return 1 + mottle * noise(rng, shape, 8) + grain * noise(rng, shape, 0.7) + rows * stripes * uneven


def light(rng: np.random.Generator, shape: Shape) -> Floats:
    """Slopes towards and away from the sun, and the shadows of clouds; shape ``(bands, rows, cols)``."""
    slope = 1 + 0.07 * noise(rng, shape, 50, 4)
    depth = 1 / (1 + np.exp(-9 * (noise(rng, shape, 45, 3.2) - rng.uniform(1.7, 2.6))))
    # Skylight is blue: shadows are darkest in the near infrared.
    return slope * (1 - np.array([0.30, 0.38, 0.44, 0.50])[:, None, None] * depth)


def blur(image: Floats, side: float = 0.2) -> Floats:
    """The spread of a pixel's light over its neighbours along the last two axes."""
    for axis in (-2, -1):
        padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(int(a == axis),) * 2 for a in (-2, -1)], mode="edge")
        first, middle, last = (np.take(padded, np.arange(s, s + image.shape[axis]), axis) for s in range(3))
        image = side * (first + last) + (1 - 2 * side) * middle
    return image


def ground(rng: np.random.Generator, land: Land) -> Floats:
    """Reflectance on the ground, shape ``(bands, rows, cols)``."""
    early, late = (np.array([getattr(c, key) for c in COVERS]).T[:, land.cover] for key in ("early", "late"))
    season = seasons(rng, land)
    vigour = rng.normal(0, 0.07, land.parcel.max() + 1)[land.parcel]
    color = (early + (late - early) * season) * (1 + np.array([-1, -0.7, -1.2, 1])[:, None, None] * vigour)
    grass = np.array(COVERS[GRASS].late)[:, None, None]
    color = np.where(borders(land.parcel) & (land.cover > GRASS), 0.55 * color + 0.45 * grass, color)
    return color * texture(rng, land)


def render(rng: np.random.Generator, land: Land) -> NDArray[np.uint16]:
    """Reflectance x 10000 as the sensor records it, shape ``(bands, rows, cols)``; never 0, which is nodata."""
    wood = land.cover == FOREST
    cast = ~wood & (np.roll(wood, -1, 0) | np.roll(wood, (-1, 1), (0, 1)))
    lit = ground(rng, land) * light(rng, land.cover.shape) * np.where(cast, 0.72, 1)
    seen = blur(lit) * rng.normal(1, 0.03) + rng.uniform(0, 0.006)
    seen = seen + (0.0018 + 0.024 * seen) * rng.standard_normal(seen.shape)
    # Steps of 0.0008 lie well below the noise and keep the files small.
    return np.rint(seen * 1250).clip(1, 8000).astype(np.uint16) * 8
