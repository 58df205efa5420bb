"""Labels of whole runs, from file to file, against float64 sums over the whole array by brute force."""

import itertools
import math

import numpy as np
import onnxruntime
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import local, pooling, positional

BLENDS = ["gaussian", "cosine", "linear", "constant", "crop"]
NODATA = 0


def starts(size, tile, overlap, align):
    """The formula, written down a second time."""
    last = max(0, math.ceil((size - tile) / align))
    step = (tile - overlap) // align
    n = math.ceil(last / step) + 1
    return [align * (i * last // (n - 1)) for i in range(n)] if n > 1 else [0]


def profile(blend, tile, left, right):
    """Weights of one window along one axis, ``left`` and ``right`` shared with its neighbours, pixel by pixel."""
    weights = []
    for i in range(tile):
        if blend == "gaussian":
            peak = math.exp(-0.5 * (((tile % 2 == 0) * 0.5) / (tile / 8)) ** 2)
            w = max(math.exp(-0.5 * ((i - (tile - 1) / 2) / (tile / 8)) ** 2), 1e-3) / max(peak, 1e-3)
            w = 1 if (not left and i < tile / 2) or (not right and i >= tile / 2 - 0.5) else w
        elif blend == "crop":
            w = 0 if i < left // 2 or i >= tile - (right - right // 2) else 1
        else:
            w = 1.0
            for distance, shared in ((i, left), (tile - 1 - i, right)):
                if blend != "constant" and distance < shared:
                    ramp = (distance + 0.5) / shared
                    w = min(w, ramp if blend == "linear" else (1 - math.cos(math.pi * ramp)) / 2)
        weights.append(w)
    return np.array(weights)


def brute_force(model, pixels, valid, tile, overlap, align, blend):
    """Mean scores ``(classes, rows, cols)`` in float64, every window inferred alone."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    grid = [starts(n, t, o, align) for n, t, o in zip(pixels.shape[1:], tile, overlap, strict=True)]
    padding = [(0, axis[-1] + t - n) for axis, t, n in zip(grid, tile, pixels.shape[1:], strict=True)]
    x = np.where(valid, pixels / 255, 0).astype(np.float32)
    x = np.pad(x, [(0, 0), *padding], mode="reflect")
    total = None
    for i, j in itertools.product(*(range(len(axis)) for axis in grid)):
        profiles, place = [], []
        for axis, k, t in zip(grid, (i, j), tile, strict=True):
            left = axis[k - 1] + t - axis[k] if k else 0
            right = axis[k] + t - axis[k + 1] if k + 1 < len(axis) else 0
            profiles.append(profile(blend, t, left, right))
            place.append(slice(axis[k], axis[k] + t))
        (scores,) = session.run(None, {"image": x[None, :, place[0], place[1]]})
        if total is None:
            total, weights = np.zeros((scores.shape[1], *x.shape[1:])), np.zeros(x.shape[1:])
        weight = np.outer(*profiles)
        total[:, place[0], place[1]] += scores[0].astype(np.float64) * weight
        weights[place[0], place[1]] += weight
    rows, cols = pixels.shape[1:]
    return (total / weights)[:, :rows, :cols]


@st.composite
def cases(draw):
    """Shapes below, at and one above the tile, primes; overlaps 0 to 75 %; batches; blends; nodata patterns."""
    align = draw(st.sampled_from([1, 4]))
    tile = align * draw(st.integers(2, 8))
    overlap = draw(st.integers(0, min(tile - align, tile * 3 // 4)))
    side = st.one_of(st.integers(1, tile), st.just(tile + 1), st.sampled_from([31, 53, 61, 97]))
    nodata = draw(st.sampled_from(["none", "some", "half", "islands", "all but one"]))
    return draw(side), draw(side), tile, overlap, align, draw(st.sampled_from([1, 2, 3, 8])), nodata


def scene(rows, cols, nodata, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 256, (3, rows, cols), dtype=np.uint8)
    if nodata == "some":
        pixels[rng.random(pixels.shape) < 0.05] = NODATA  # in one band: the pixel is invalid in all
    elif nodata == "half":
        pixels[:, :, cols // 2 :] = NODATA
    elif nodata == "islands":
        pixels[:, rng.random((rows, cols)) < 0.97] = NODATA
    elif nodata == "all but one":
        keep = pixels[:, rows // 2, cols // 2].copy()
        pixels[:] = NODATA
        pixels[:, rows // 2, cols // 2] = keep
    return pixels


def check(labels, mean, valid):
    """Equal wherever the two best scores differ by more than 1e-4; nodata exactly where invalid."""
    np.testing.assert_array_equal(labels == 255, ~valid)
    ordered = np.sort(mean, axis=0)
    clear = valid & (ordered[-1] - ordered[-2] > 1e-4)
    np.testing.assert_array_equal(labels[clear], mean.argmax(axis=0)[clear])
    assert valid.sum() < 50 or clear.sum() > 0.9 * valid.sum()


@pytest.mark.parametrize("blend", BLENDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_labels_equal_brute_force(blend, case, raster, run_serial, tmp_path):
    rows, cols, tile, overlap, align, batch, nodata = case
    pixels = scene(rows, cols, nodata)
    model = positional(tmp_path / "m.onnx", tile, overlap=[overlap] * 2, align=align)
    out = run_serial(raster("in/a.tif", pixels, nodata=NODATA), model, batch=batch, blend=blend, overwrite=True)
    valid = (pixels != NODATA).all(axis=0)
    with rasterio.open(out / "a.tif") as mask:
        check(mask.read(1), brute_force(model, pixels, valid, (tile, tile), (overlap, overlap), align, blend), valid)


def whole_image(model, pixels):
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": (pixels / 255).astype(np.float32)[None]})[0][0]


@pytest.mark.parametrize(("build", "align", "overlap"), [(local, 1, 8), (pooling, 4, 40)])
@pytest.mark.parametrize("shape", [(200, 168), (68, 300)])
def test_crop_equals_whole_image_inference_where_the_receptive_field_fits(
    build, align, overlap, shape, raster, run_serial, tmp_path
):
    """Sizes are multiples of the stride here, so that whole-image inference pads as its tiles do."""
    pixels = scene(*shape, "none")
    model = build(tmp_path / "m.onnx", align=align)
    out = run_serial(raster("in/a.tif", pixels), model, tile=64, overlap=overlap, blend="crop")
    mean = whole_image(model, pixels)
    with rasterio.open(out / "a.tif") as mask:
        check(mask.read(1), mean, np.ones(shape, bool))


@pytest.mark.parametrize("blend", ["gaussian", "cosine", "linear", "constant"])
def test_other_blends_equal_it_outside_the_receptive_radius_of_inner_edges(blend, raster, run_serial, tmp_path):
    pixels = scene(203, 171, "none")
    model = local(tmp_path / "m.onnx")
    out = run_serial(raster("in/a.tif", pixels), model, tile=64, overlap=24, blend=blend)
    clear = np.ones((203, 171), bool)
    for axis, size in enumerate(clear.shape):
        for edge in (e for s in starts(size, 64, 24, 1) for e in (s, s + 64) if 0 < e < size):
            clear[(slice(None),) * axis + (slice(max(0, edge - 3), edge + 3),)] = False
    mean = whole_image(model, pixels)
    ordered = np.sort(mean, axis=0)
    clear &= ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.6
    with rasterio.open(out / "a.tif") as mask:
        np.testing.assert_array_equal(mask.read(1)[clear], mean.argmax(axis=0)[clear])
