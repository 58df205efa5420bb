"""``segpipe tune``: seam error against inference done here, choices and figures by hand, the command as a user has it."""

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import rasterio
from networks import local, pixelwise, pooling, positional
from rich.console import Console
from test_batch_independence import dynamic

from segpipe.errors import ContractError, InputError, SettingsError
from segpipe.formats.case import Case
from segpipe.geometry.windows import Cover, Tiling, Window
from segpipe.overrides import AS_STORED
from segpipe.tune import show
from segpipe.tune.candidates import Candidate, batches, candidates, open_networks
from segpipe.tune.labels import Count, LaidTiling, extent, reference_tiling, sample
from segpipe.tune.measure import tune
from segpipe.tune.places import TunePlace, find_places
from segpipe.tune.settings import TuneSettings
from segpipe.tune.speed import speed
from segpipe.tune.table import agrees, loses_at_most, make_rows
from segpipe.tune.truth import find_truth

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.usefixtures("measured_once")


def tuned(model: Path, **flags: Any):
    """Measured in this process."""
    lines: list[str] = []
    return tune(TuneSettings(model=model, device="cpu", **{"seconds": 60.0, **flags}), lines.append)


def noise(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (3, rows, cols), dtype=np.uint8)


def errors(found) -> dict[tuple[int, int], float]:
    return {(r.candidate.tiling.tile[0], r.candidate.tiling.overlap[0]): r.seam_error for r in found.rows}


def test_no_seam_where_the_overlap_holds_the_receptive_field_and_fewer_the_larger_it_is(tmp_path):
    """Radius 3; cropped tiles with an overlap of 6 or more show whole-image inference only."""
    found = tuned(local(tmp_path / "m.onnx"), blend="crop", tiles=(64, 32), overlaps=(0, 2, 4, 6, 8))
    seams = errors(found)
    for tile in (32, 64):
        assert seams[tile, 0] > seams[tile, 2] > seams[tile, 4] > 0
        assert seams[tile, 6] == seams[tile, 8] == 0
    assert all(seams[32, o] > seams[64, o] for o in (0, 2, 4))  # twice as many lines


def test_no_seam_at_all_where_pixels_are_alone(tmp_path):
    assert set(errors(tuned(pixelwise(tmp_path / "m.onnx"))).values()) == {0.0}


def whole(model: Path, pixels: np.ndarray) -> np.ndarray:
    """Labels by one call of ONNX Runtime, mirrored to the stride of 4 as a run mirrors."""
    rows, cols = pixels.shape[1:]
    x = np.pad((pixels / 255).astype(np.float32), [(0, 0), (0, -rows % 4), (0, -cols % 4)], mode="reflect")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x[None]})[0][0].argmax(axis=0)[:rows, :cols]


@pytest.mark.parametrize("nodata", [None, 0])
def test_the_seam_error_is_that_of_a_run_of_these_scenes(nodata, raster, run_serial, tmp_path):
    pixels = noise(150, 131)
    if nodata is not None:
        pixels[:, :40, :90] = nodata
    scene = raster("in/a.tif", pixels, nodata=nodata)
    model = pooling(tmp_path / "m.onnx", overlap=[24, 24])
    found = tuned(model, input=(str(scene),), tiles=(64,), overlaps=(0, 4, 40))
    assert "overlaps that give the same windows on these scenes are listed once" in found.notes  # 0 and 4
    seams = errors(found)
    valid = (pixels != 0).all(axis=0)
    assert seams[64, 0] > 0
    for overlap in (0, 24, 40):
        out = run_serial(scene, model, tile=64, overlap=str(overlap), output=tmp_path / f"out{overlap}")
        with rasterio.open(out / "a.tif") as mask:
            assert seams[64, overlap] == np.mean(mask.read(1)[valid] != whole(model, pixels)[valid])
    assert found.reference == "m.onnx on the whole box in one call"


def test_a_sample_counts_whole_steps_from_the_middle_of_the_first_window_to_that_of_the_last():
    tiling = Tiling((32,), (8,), (4,), "gaussian")
    assert tiling.step == (24,)
    large = TunePlace(Window((0,), (200,)), (False,))
    assert sample(large, tiling, (48,)) == LaidTiling(Window((60,), (140,)), Window((76,), (124,)))
    assert tuple(Cover((80,), tiling).starts[0]) == (0, 24, 48)
    assert sample(large, tiling, (1,)) == LaidTiling(Window((72,), (128,)), Window((88,), (112,)))
    assert extent(tiling, (48,)) == (80,)
    small = TunePlace(Window((0,), (50,)), (True,))
    assert sample(small, tiling, (48,)) == LaidTiling(Window((0,), (50,)), Window((0,), (50,)))


def test_choices_are_the_contracts_then_those_around_it(tmp_path):
    model = pooling(tmp_path / "m.onnx")
    settings = TuneSettings(model=model, device="cpu")
    (network,) = open_networks(settings)
    found = [(c.tiling.tile[0], c.tiling.overlap[0]) for c in candidates([network], settings)]
    assert found == [(t, o) for t, shared in ((64, (16, 8, 4, 0)), (128, (32, 16, 8, 0)), (32, (8, 4, 0))) for o in shared]
    assert batches(network, (64, 64), settings) == (1, 2, 4)
    assert batches(network, (128, 128), settings) == (1,)


def test_a_model_of_one_size_offers_its_tile_only(tmp_path):
    model = positional(tmp_path / "m.onnx", 32, align=4, overlap=[8, 8])
    found = tuned(model)
    assert set(errors(found)) == {(32, 8), (32, 4), (32, 0)}
    assert found.reference == "m.onnx with its tiles sharing three quarters, each label from the middle of one"
    with pytest.raises(SettingsError, match=r"the sizes of .*m\.onnx are fixed to its tile: leave --tile out"):
        tuned(model, tiles=(64,))


def test_a_network_whose_labels_depend_on_its_tile_is_compared_with_the_middle_of_tiles(tmp_path):
    (network,) = open_networks(TuneSettings(model=local(tmp_path / "m.onnx", equivariant=False, align=8), device="cpu"))
    tiling = reference_tiling(network, (200, 200))
    assert (tiling.tile, tiling.overlap, tiling.blend) == ((64, 64), (48, 48), "crop")


@pytest.fixture
def rows(tmp_path) -> Callable[[float], Any]:
    """Four choices: the contract's; half its cost and 99.5 % equal; as dear as it and less equal; cheapest and 90 %."""
    (network,) = open_networks(TuneSettings(model=local(tmp_path / "m.onnx"), device="cpu"))
    own = network.spec.tiling
    four = [
        Candidate(network, own),
        *(Candidate(network, Tiling(own.tile, (o, o), own.align, own.blend)) for o in (8, 4, 0)),
    ]
    counts = dict(
        zip(four, (Count(1000, 1, 999), Count(1000, 5, 995), Count(1000, 9, 991), Count(1000, 100, 900)), strict=True)
    )
    first = [2.0, 4.0]
    speeds = {(network, own.tile, 1): speed(first, first), (network, own.tile, 2): speed([3.0], first)}
    tiles = dict(zip((c.tiling.overlap for c in four), (4.0, 2.0, 4.0, 1.0), strict=True))
    return lambda least: make_rows(counts, speeds, lambda tiling: tiles[tiling.overlap], agrees(least))


def test_rows_by_hand(rows):
    found = {row.candidate.tiling.overlap[0]: row for row in rows(0.99)}
    assert list(found) == [0, 8, 16, 4]
    assert [row.seconds_per_megapixel for row in found.values()] == [3.0, 6.0, 12.0, 12.0]
    assert [row.times_as_fast for row in found.values()] == [4.0, 2.0, 1.0, 1.0]
    assert [row.equal for row in found.values()] == [0.9, 0.995, 0.999, 0.991]
    assert [row.front for row in found.values()] == [True, True, True, False]
    assert [row.best for row in found.values()] == [False, True, False, False]
    assert [row.batch for row in found.values()] == [1, 1, 1, 1]  # a batch of 2 was given up after one round


@pytest.mark.parametrize(("least", "overlap"), [(0.5, 0), (0.995, 8), (0.996, 16), (1.0, None)])
def test_what_is_advised_agrees_well_enough(rows, least, overlap):
    assert [row.candidate.tiling.overlap[0] for row in rows(least) if row.best] == ([] if overlap is None else [overlap])


def test_a_machine_that_grows_busy_does_not_change_ratios():
    slow = speed([2.0, 6.0], [1.0, 3.0, 2.0])
    assert (slow.relative, slow.seconds) == (2.0, 4.0)


def test_places_lie_where_pixels_are_valid(raster, tmp_path):
    pixels = np.zeros((3, 200, 200), np.uint8)
    pixels[:, 100:, 100:] = 9
    raster("in/a.tif", pixels, nodata=0)
    raster("in/b.tif", np.zeros_like(pixels), nodata=0)
    (network,) = open_networks(TuneSettings(model=local(tmp_path / "m.onnx"), device="cpu"))
    cases = [Case(name, str(tmp_path / "in" / f"{name}.tif")) for name in "ab"]
    # rows and columns start at 68, 34 or 102: the middle is empty, and here half of the pixels are valid
    (place,) = find_places(cases, (64, 64), 1, network.spec, AS_STORED)
    assert (place.case.name, place.window) == ("a", Window((68, 102), (132, 166)))
    with pytest.raises(InputError, match=r"b\.tif must hold valid pixels"):
        find_places(cases[1:], (64, 64), 1, network.spec, AS_STORED)


def test_what_the_budget_has_no_room_for_is_left_out_and_said(tmp_path):
    found = tuned(local(tmp_path / "m.onnx"), seconds=1e-6)
    assert [row.candidate.is_own for row in found.rows] == [True]
    assert any(note.startswith("left out, for 1e-06 s: 11 choices") for note in found.notes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seconds": 0.0}, "--seconds must be above 0, got 0"),
        ({"min_agreement": 1.1}, "--min-agreement is a share of labels, above 0 and up to 1, got 1.1"),
        ({"batches": (0,)}, "--batch must be at least 1, got 0"),
        ({"also": (Path("m.onnx"),)}, "got the same one twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(SettingsError, match=message):
        TuneSettings(model=Path("m.onnx"), **flags)


def test_another_file_must_mean_the_same_classes(tmp_path):
    other = local(tmp_path / "other.onnx", 3, 4)
    with pytest.raises(ContractError, match=r"the classes of .*other\.onnx are not those of .*m\.onnx: tune it by itself"):
        tuned(local(tmp_path / "m.onnx"), also=(other,))


def test_another_file_is_compared_with_its_own_whole_image_and_with_the_models(tmp_path):
    """The other network is another one altogether: no seam in it, and labels of its own."""
    model, other = pixelwise(tmp_path / "m.onnx"), pixelwise(tmp_path / "other.onnx", seed=1)
    found = tuned(model, also=(other,), min_agreement=0.999)
    for row in found.rows:
        assert row.seam_error == 0
        assert (row.equal == 1) is (row.candidate.network.name == "m.onnx")
    assert found.best.candidate.network.name == "m.onnx"


def test_the_example_end_to_end(segpipe, tmp_path):
    scenes, model = EXAMPLES / "scenes", EXAMPLES / "crops.onnx"
    arguments = ("tune", model, "--input", scenes, "--device", "cpu", "--seconds", 60, "--tile", 256, "--batch", 1)
    done = segpipe(*arguments)
    assert done.returncode == 0, done.stderr
    assert "reference: crops.onnx on the whole box in one call" in done.stdout
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[:4] == ["segpipe", "run", "--model", str(model)]
    again = segpipe(*command[1:], "--output", "out", "--executor", "serial")
    assert again.returncode == 0, again.stderr
    assert len(list((tmp_path / "out").glob("*.tif"))) == 3


def test_json_holds_all_that_is_printed(segpipe, tmp_path):
    done = segpipe("tune", local(tmp_path / "m.onnx"), "--json", "--seconds", 60, "--device", "cpu", "--overlap", 8)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    own = next(candidate for candidate in found["choices"] if candidate["own"])
    assert (own["tile"], own["overlap"], own["times_as_fast"]) == ([64, 64], [16, 16], 1.0)
    assert {candidate["tile"][0] for candidate in found["choices"]} == {32, 64, 128}
    assert found["command"].startswith("segpipe run --model")
    assert "seam error on noise says little" in done.stderr


def test_no_choice_that_agrees_ends_with_1(segpipe, tmp_path):
    model = positional(tmp_path / "m.onnx", 32, align=4, overlap=[8, 8])
    done = segpipe("tune", model, "--seconds", 60, "--min-agreement", 1, "--device", "cpu")
    assert done.returncode == 1, done.stderr
    assert "no choice gives 100.00% equal labels; the nearest, with" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx"], "the model must exist, got none.onnx"),
        (["m.onnx", "--input", "none"], "the input must exist, got none"),
        (["m.onnx", "--tile", "60"], "tile must be a multiple of align"),
        (["m.onnx", "--overlap", "64"], "overlap must be smaller than the tile"),
    ],
)
def test_what_cannot_be_measured_ends_with_2(arguments, message, segpipe, tmp_path):
    pooling(tmp_path / "m.onnx", align=8)
    done = segpipe("tune", *arguments, "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("name", ["crops-int8.onnx", "segformer-b5-cityscapes-1024-opset17-int8-static.onnx"])
def test_the_table_keeps_every_digit_at_80_columns(name):
    head = show.HEAD
    rows = [["*>=", name, "1024", "128", "32", "2077.66", "10.128", "12.52", "100.000%", "10.223%"]] * 2
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(show.table_of(head, rows))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for cell in (*rows[0][:1], *rows[0][2:]):
        assert sum(cell in line.split() for line in lines) == 2, cell
    assert "…" not in "".join(lines)
    left = [line[4:].split("  ")[0].split(" ")[0] for line in lines[2:]]
    assert "".join(left) == 2 * name


def test_batches_that_change_scores_are_not_measured(tmp_path):
    settings = TuneSettings(model=dynamic(tmp_path / "m.onnx"), device="cpu")
    (network,) = open_networks(settings)
    assert batches(network, network.spec.tiling.tile, settings) == (1,)
    (plain,) = open_networks(TuneSettings(model=local(tmp_path / "p.onnx"), device="cpu"))
    assert batches(plain, plain.spec.tiling.tile, settings) == (1, 2, 4)


@pytest.fixture
def labelled(raster, tmp_path):
    """A scene, a model of three classes, and a reference: the model's own labels, with a third of the rows changed."""
    scene = raster("in/a.tif", noise(150, 140))
    model = pixelwise(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with rasterio.open(scene) as file:
        pixels = file.read().astype(np.float32)[None] / 255
    truth = session.run(None, {"image": pixels})[0][0].argmax(axis=0).astype(np.uint8)
    truth[:50] = 1
    return scene, model, raster("truth/a.tif", truth[None]), truth


def test_mean_iou_against_a_reference_is_that_of_the_labels_by_hand(labelled, tmp_path):
    scene, model, reference, truth = labelled
    found = tuned(model, input=(str(scene),), tiles=(64,), overlaps=(16,), batches=(1,), reference=reference, max_loss=0.0)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with rasterio.open(scene) as file:
        mine = session.run(None, {"image": file.read().astype(np.float32)[None] / 255})[0][0].argmax(axis=0)
    (place,) = find_places([Case("a", str(scene))], found_side(found), 1, found.rows[0].candidate.network.spec, AS_STORED)
    counted = sample(place, found.rows[0].candidate.tiling, (96, 96)).counted
    box = tuple(slice(place.window.start[k] + counted.start[k], place.window.start[k] + counted.stop[k]) for k in (0, 1))
    a, b = mine[box], truth[box]
    by_hand = np.mean([((a == k) & (b == k)).sum() / ((a == k) | (b == k)).sum() for k in range(3)])
    assert found.rows[0].mean_iou == pytest.approx(by_hand, abs=1e-12)
    assert found.best == found.rows[0]
    assert json.loads(show.as_json(found))["choices"][0]["mean_iou"] == pytest.approx(by_hand, abs=1e-12)


def found_side(found) -> tuple[int, ...]:
    return tuple(map(int, found.compared_on.split(" of ")[1].split(" px")[0].split(" x ")))


def test_the_recommended_choice_loses_at_most_what_is_allowed(tmp_path):
    """Three choices with mean IoU 0.90, 0.895 and 0.80, the later the faster."""
    truth = [np.array([[90, 0], [10, 0]]), np.array([[179, 0], [21, 0]]), np.array([[80, 0], [20, 0]])]
    (network,) = open_networks(TuneSettings(model=local(tmp_path / "m.onnx"), device="cpu"))
    tilings = [Tiling((64, 64), (o, o), (1, 1), "gaussian") for o in (16, 8, 0)]
    each = zip(tilings, truth, strict=True)
    counts = {Candidate(network, tiling): Count(100, 0, 100, confusion) for tiling, confusion in each}
    assert [count.mean_iou for count in counts.values()] == pytest.approx([0.45, 0.4475, 0.4])
    speeds = {(network, (64, 64), 1): speed([1.0], [1.0])}
    tiles = {(16, 16): 3.0, (8, 8): 2.0, (0, 0): 1.0}

    def best(loss):
        rows = make_rows(counts, speeds, lambda tiling: tiles[tiling.overlap], loses_at_most(loss))
        return next(row.candidate.tiling.overlap[0] for row in rows if row.best)

    assert [best(loss) for loss in (0.0, 0.003, 0.06)] == [16, 8, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_loss": 0.01}, "--max-loss needs true labels: give --reference, too, or leave --max-loss out"),
        ({"map_classes": Path("m.toml")}, "--map-classes needs true labels: give --reference, too"),
        ({"reference": Path("r"), "max_loss": 2.0}, "--max-loss is a difference of mean IoU, from 0 to 1, got 2"),
    ],
)
def test_flags_of_true_labels_are_checked(flags, message):
    with pytest.raises(SettingsError, match=message):
        TuneSettings(model=Path("m.onnx"), **flags)


def test_a_reference_without_scenes_or_of_other_names_is_refused(labelled, raster):
    scene, model, _, truth = labelled
    with pytest.raises(InputError, match="--reference needs the scenes that it belongs to: give --input, too"):
        tuned(model, reference=scene.parent)
    other = raster("others/b.tif", truth[None]).parent
    with pytest.raises(InputError, match=r"references must have the names of cases, a, and .* has none of them"):
        tuned(model, input=(str(scene),), reference=other)


def test_a_reference_needs_one_class_per_pixel(tmp_path, raster):
    model = pixelwise(tmp_path / "m.onnx", activation="sigmoid", task="multilabel")
    (network,) = open_networks(TuneSettings(model=model, device="cpu"))
    with pytest.raises(SettingsError, match=r'--reference needs one class per pixel, .* task = "multilabel": leave it out'):
        find_truth(tmp_path, None, [Case("a", "a.tif")], network.spec)


def test_cases_without_a_reference_are_left_out(labelled, raster):
    scene, model, reference, _ = labelled
    raster("in/b.tif", noise(150, 140, seed=3))
    found = tuned(model, input=(str(scene.parent),), tiles=(64,), overlaps=(16,), batches=(1,), reference=reference.parent)
    assert found.compared_on.endswith("px of a")
