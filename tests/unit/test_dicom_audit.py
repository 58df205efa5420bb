"""The audit of a series' geometry: a pure function of positions, directions and sizes."""

from dataclasses import replace

import numpy as np
import pytest

from segpipe.formats.dicom.audit import audit
from segpipe.formats.dicom.series import Frame

ROWS, COLUMNS = 512, 512


def frames(count=31, step=10.0, spacing=(0.7, 0.7), **more):
    """An axial stack of 512 x 512 pixels."""
    return [
        Frame(
            f"{n}.dcm", 0, f"1.2.{n}", (-100.0, -120.0, 5.0 + n * step), ((1.0, 0, 0), (0, 1.0, 0)), spacing, (ROWS, COLUMNS)
        )
        for n in range(count)
    ]


def moved(stack, n, x=0.0, y=0.0, z=0.0):
    a, b, c = stack[n].position
    return [*stack[:n], replace(stack[n], position=(a + x, b + y, c + z)), *stack[n + 1 :]]


def sole(stack):
    """The only fault."""
    (fault,) = audit(stack).faults
    return fault


def test_a_regular_stack_has_a_grid_in_ras():
    found = audit(frames(spacing=(0.5, 0.8)))
    assert (found.faults, found.notes, found.order) == ((), (), tuple(range(31)))
    assert found.grid.shape == (31, ROWS, COLUMNS)
    assert found.grid.spacing == pytest.approx((10, 0.5, 0.8))
    assert found.grid.directions == "SPL"
    np.testing.assert_allclose(found.grid.world(np.array([2, 3, 4])), [100 - 4 * 0.8, 120 - 3 * 0.5, 25])


def test_a_tilt_of_2_degrees_over_300_mm_is_named():
    lean = np.tan(np.radians(2))
    stack = [
        replace(f, position=(f.position[0], f.position[1] + lean * n * 10, f.position[2])) for n, f in enumerate(frames())
    ]
    fault = sole(stack)
    assert fault.kind == "tilt"
    assert "sheared by 2 degrees" in fault.text
    assert "10.5 mm (15 pixels) over 300 mm" in fault.text


@pytest.mark.parametrize(("pixels", "kind"), [(0.4, None), (0.6, "tilt")])
def test_half_a_pixel_of_tilt_is_allowed_and_noted(pixels, kind):
    stack = [replace(f, position=(f.position[0] + 0.7 * pixels * n / 30, *f.position[1:])) for n, f in enumerate(frames())]
    found = audit(stack)
    assert [f.kind for f in found.faults] == ([kind] if kind else [])
    assert bool(found.notes) == (kind is None)


def test_a_gantry_that_leans_with_its_planes_is_a_tilt_too():
    angle = np.radians(2)
    down = (0.0, float(np.cos(angle)), float(np.sin(angle)))
    stack = [replace(f, directions=((1.0, 0, 0), down)) for f in frames()]
    assert sole(stack).kind == "tilt"
    assert "2 degrees" in sole(stack).text


def test_missing_slices_are_counted_and_placed():
    stack = frames()
    fault = sole([f for n, f in enumerate(stack) if n not in (4, 5, 20)])
    assert fault.kind == "missing"
    assert "3 slices are missing at steps of 10 mm: 2 between 35 and 65 mm, 1 between 195 and 215 mm" in fault.text


def test_a_gap_is_no_multiple_of_the_step():
    stack = frames()
    fault = sole([*stack[:10], *(replace(f, position=(*f.position[:2], f.position[2] + 5)) for f in stack[10:])])
    assert fault.kind == "gap"
    assert "15 mm between 95 and 110 mm" in fault.text


def test_a_doubled_position_names_both_files():
    stack = [*frames(), replace(frames()[7], path="again.dcm", instance="9.9")]
    fault = sole(stack)
    assert fault.kind == "doubled"
    assert "75 mm (7.dcm and again.dcm)" in fault.text
    assert "SOPInstanceUID" not in fault.text
    assert "1 are copies of one file" in sole([*frames(), replace(frames()[7], path="copy.dcm")]).text


def test_jitter_is_named_with_the_range_of_distances():
    noise = np.random.default_rng(0).uniform(-1.5, 1.5, 31)
    stack = [replace(f, position=(*f.position[:2], f.position[2] + float(noise[n]))) for n, f in enumerate(frames())]
    fault = sole(stack)
    assert fault.kind == "jitter"
    assert "mm beside equal steps of" in fault.text


def test_little_jitter_is_a_note():
    found = audit(moved(frames(), 3, z=0.4))
    assert found.faults == ()
    assert "9.6 to 10.4 mm" in found.notes[0]


def test_a_single_slice_beside_the_others():
    fault = sole(moved(frames(), 15, x=2.0))
    assert fault.kind == "shifted"
    assert "the one at 155 mm" in fault.text


def test_one_orientation_up_to_the_noise_of_decimals():
    stack = frames()
    near = replace(stack[3], directions=((1.0, 1e-7, 0), (-1e-7, 1.0, 0)))
    assert audit([*stack[:3], near, *stack[4:]]).faults == ()
    angle = np.radians(1)
    turned = replace(stack[3], directions=((np.cos(angle), np.sin(angle), 0), (-np.sin(angle), np.cos(angle), 0)))
    fault = sole([*stack[:3], turned, *stack[4:]])
    assert fault.kind == "mixed orientations"
    assert "1 of 31 are turned by up to 1 degrees (3.dcm)" in fault.text


def test_one_pixel_spacing_up_to_the_noise_of_decimals():
    stack = frames()
    assert audit([replace(stack[0], spacing=(0.7 + 1e-7, 0.7)), *stack[1:]]).faults == ()
    fault = sole([replace(stack[0], spacing=(0.8, 0.7)), *stack[1:]])
    assert fault.kind == "mixed spacing"
    assert "1 of 31 differ from 0.7 x 0.7 mm, as 0.8 x 0.7 (0.dcm)" in fault.text


def test_mixed_sizes():
    fault = sole([replace(frames()[0], shape=(256, 256)), *frames()[1:]])
    assert fault.kind == "mixed sizes"
    assert "30 of 512 x 512, 1 of 256 x 256 (0.dcm)" in fault.text


@pytest.mark.parametrize("absent", ["position", "directions", "spacing"])
def test_what_has_no_place(absent):
    assert sole([replace(frames()[0], **{absent: None}), *frames()[1:]]).kind == "no geometry"


@pytest.mark.parametrize("spacing", [(0.0, 0.7), (-1.0, 1.0), (float("nan"), 1.0)])
def test_pixels_have_a_size(spacing):
    assert "above 0" in sole([replace(f, spacing=spacing) for f in frames()]).text


def test_rows_and_columns_are_at_right_angles():
    assert sole([replace(f, directions=((1.0, 0, 0), (0.1, 0.995, 0))) for f in frames()]).kind == "sheared"
    assert sole([replace(f, directions=((2.0, 0, 0), (0, 1.0, 0))) for f in frames()]).kind == "no geometry"


def test_planes_come_in_order_of_the_normal_whatever_the_order_of_files():
    stack = frames()[::-1]
    found = audit(stack)
    assert found.order == tuple(range(30, -1, -1))
    assert found.grid == audit(frames()).grid


def test_one_slice_is_as_thick_as_it_says():
    found = audit([replace(frames()[0], thickness=3.0)])
    assert found.grid.spacing == (3.0, 0.7, 0.7)
    assert "3 mm" in found.notes[0]
    assert "SliceThickness" in sole(frames(1)).text


def test_all_faults_are_named_at_once():
    lean = [replace(f, position=(f.position[0] + n * 0.5, *f.position[1:])) for n, f in enumerate(frames())]
    assert [f.kind for f in audit([*lean[:5], *lean[6:], replace(lean[9], instance="9")]).faults] == [
        "doubled",
        "missing",
        "tilt",
    ]


@pytest.mark.parametrize("count", [2, 5, 30])
def test_rows_of_opposite_directions_are_mixed_orientations(count):
    stack = [
        replace(frame, directions=((-1.0, 0, 0), (0, -1.0, 0))) if n % 2 else frame for n, frame in enumerate(frames(count))
    ]
    fault = sole(stack)
    assert fault.kind == "mixed orientations"
    assert "are turned by up to 180 degrees" in fault.text
