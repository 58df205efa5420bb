"""Make the bundled example from a seed: three scenes, their truth, and a U-Net that has never seen them."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import rasterio
import torch
from landscape import BANDS, COVERS, NODATA, UNKNOWN, Shape, landscape, render
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from rasterio.transform import Affine
from safetensors.torch import save_file
from torch import Tensor, nn

from segpipe.export.make import export_model
from segpipe.export.settings import ExportSettings
from segpipe.export.unet import WIDTHS, UNet

log = logging.getLogger(__name__)

SOURCE = "synthetic landscape of examples/make_example.py"
DATE = "2026-11-21"
SCALE = 0.0001
STRIDE = 2 ** (len(WIDTHS) - 1)
TRAINING_SCENES = 40
BATCH, CROP = 8, 128


@dataclass(frozen=True)
class Site:
    """Where a scene lies; ``corner`` is the longitude and latitude of its upper left."""

    name: str
    crs: str
    corner: tuple[float, float]
    shape: Shape
    swath: float  # degrees that the edge of the swath leans to the left


SITES = (
    Site("morava", "EPSG:32633", (17.02, 48.93), (530, 561), 12.0),
    Site("pirai", "EPSG:32720", (-63.31, -17.02), (573, 509), -11.0),
    Site("danube", "EPSG:4326", (16.58, 48.20), (518, 603), 9.0),
)


@dataclass(frozen=True)
class Scene:
    """Pixels of shape ``(bands, rows, cols)``, and truth of shape ``(rows, cols)``: `UNKNOWN` where there are none."""

    pixels: NDArray[np.uint16]
    truth: NDArray[np.uint8]


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of the reflectance in each band."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def normalize(self, pixels: NDArray[np.uint16]) -> NDArray[np.float32]:
        """What the model takes, for pixels of shape ``(..., bands, rows, cols)``."""
        return ((pixels * np.float32(SCALE) - self.mean[:, None, None]) / self.std[:, None, None]).astype(np.float32)


def collar(rng: np.random.Generator, shape: Shape, swath: float) -> NDArray[np.bool_]:
    """Pixels outside the swath: its slanted edge, in the steps of the detectors, and one lost corner."""
    rows, cols = np.indices(shape)
    slant = np.tan(np.radians(swath)) * (rows - shape[0] / 2)
    edge = cols + slant < shape[1] * rng.uniform(0.04, 0.08) + 5 * (rows // 80 % 2)
    beyond = rows - shape[0] + 1.3 * (cols - shape[1])
    return edge | (beyond > 7 * (cols // 30 % 3) - rng.uniform(70, 120))


def make_scene(rng: np.random.Generator, shape: Shape, swath: float) -> Scene:
    """One landscape as the satellite sees it, with its collar."""
    land = landscape(rng, shape)
    outside = collar(rng, shape, swath)
    return Scene(np.where(outside, NODATA, render(rng, land)).astype(np.uint16), np.where(outside, UNKNOWN, land.cover))


def training_scenes(seed: int) -> list[Scene]:
    """Scenes that share no seed with the held-out ones."""
    return [
        make_scene(rng, (448, 448), rng.uniform(-12, 12))
        for rng in map(np.random.default_rng, np.random.SeedSequence([seed, 0]).spawn(TRAINING_SCENES))
    ]


def held_out_scene(seed: int, site: Site) -> Scene:
    """The scene that is committed for ``site``."""
    rng = np.random.default_rng([seed, 1, *site.name.encode()])
    return make_scene(rng, site.shape, site.swath)


def measure(scenes: list[Scene]) -> Spread:
    """The spread over all valid pixels, rounded as the contract keeps it."""
    valid = np.concatenate([scene.pixels[:, scene.truth != UNKNOWN] for scene in scenes], axis=1) * SCALE
    return Spread(*(np.float32(np.round(value, 4)) for value in (valid.mean(1), valid.std(1))))


def crop(rng: np.random.Generator, scene: Scene, spread: Spread) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A random square of a scene in one of its eight orientations, and its truth."""
    row, col = (rng.integers(side - CROP + 1) for side in scene.truth.shape)
    window = np.s_[..., row : row + CROP, col : col + CROP]
    truth = scene.truth[window]
    # Whoever runs the model decides what stands in for nodata: its raw value, or the mean.
    image = np.where((truth == UNKNOWN) & (rng.random() < 0.5), 0, spread.normalize(scene.pixels[window]))
    turn, flip = rng.integers(4), rng.choice([1, -1])
    return tuple(np.rot90(plane, turn, (-2, -1))[..., ::flip] for plane in (image, truth))


def batches(rng: np.random.Generator, scenes: list[Scene], spread: Spread) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of shape ``(batch, bands, rows, cols)`` and truth of shape ``(batch, rows, cols)``, without end."""
    while True:
        chosen = rng.integers(len(scenes), size=BATCH)
        images, truths = zip(*(crop(rng, scenes[i], spread) for i in chosen), strict=True)
        yield torch.from_numpy(np.stack(images).astype(np.float32)), torch.from_numpy(np.stack(truths).astype(np.int64))


def train(scenes: list[Scene], spread: Spread, *, steps: int, seed: int) -> UNet:
    """A network fitted with Adam on one cycle of the learning rate."""
    torch.manual_seed(seed)
    model = UNet(len(BANDS), len(COVERS))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    supply = batches(np.random.default_rng([seed, 2]), scenes, spread)
    for step, (images, truths) in enumerate(islice(supply, steps)):
        loss = nn.functional.cross_entropy(model(images), truths, ignore_index=UNKNOWN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log.info("step %5d  loss %.3f", step, loss.item())
    return model.eval()


def predict(model: UNet, spread: Spread, scene: Scene) -> NDArray[np.intp]:
    """The best class of each pixel, from the whole image at once."""
    rows, cols = scene.truth.shape
    padding = ((0, 0), (0, -rows % STRIDE), (0, -cols % STRIDE))
    image = torch.from_numpy(np.pad(spread.normalize(scene.pixels), padding, mode="reflect"))
    with torch.inference_mode():
        return model(image[None])[0, :, :rows, :cols].argmax(0).numpy()


def class_means(scenes: list[Scene]) -> NDArray[np.floating]:
    """The mean spectrum of each class, shape ``(classes, bands)``."""
    pixels = np.concatenate([scene.pixels.reshape(len(BANDS), -1) for scene in scenes], axis=1)
    truth = np.concatenate([scene.truth.ravel() for scene in scenes])
    return np.stack([pixels[:, truth == i].mean(1) for i in range(len(COVERS))])


def nearest_mean(means: NDArray[np.floating], spread: Spread, scene: Scene) -> NDArray[np.intp]:
    """The class of the nearest mean spectrum: how well a pixel does that does not look at its surroundings."""
    image, centers = spread.normalize(scene.pixels), spread.normalize(means[:, :, None, None])
    return np.argmin([np.square(image - center).sum(0) for center in centers], axis=0)


def confusion(truth: NDArray[np.integer], guess: NDArray[np.integer]) -> NDArray[np.intp]:
    """Pixels by true class (rows) and predicted class (columns), where the truth is known."""
    known, classes = truth != UNKNOWN, len(COVERS)
    pairs = truth[known].astype(np.intp) * classes + guess[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(table: NDArray[np.intp]) -> NDArray[np.floating]:
    """Intersection over union of each class of a confusion table."""
    hit = np.diag(table)
    return hit / (table.sum(0) + table.sum(1) - hit)


def provenance(seed: int, miou: float) -> dict[str, object]:
    """Where the weights come from."""
    return {"date": DATE, "seed": seed, "data": SOURCE, "miou": round(miou, 4)}


def contract(spread: Spread, origin: dict[str, object]) -> str:
    """What the runner must know of the model, as TOML; the rest is measured on the network."""
    numbers = {key: [round(float(value), 4) for value in getattr(spread, key)] for key in ("mean", "std")}
    lines = [
        "# What `segpipe export` cannot find in the weights of the example: how pixels are scaled, and the classes.",
        f"channels = {json.dumps(BANDS)}",
        f"scale = {SCALE}",
        'normalize = "fixed"',
        *(f"{key} = {values}" for key, values in numbers.items()),
        "tile = [256, 256]",
        "overlap = [64, 64]",
        "spacing = [10.0, 10.0]",
        'activation = "softmax"',
        *(f'[[classes]]\nid = {i}\nname = "{cover.name}"\ncolor = "{cover.color}"' for i, cover in enumerate(COVERS)),
        "[provenance]",
        *(f"{key} = {json.dumps(value)}" for key, value in origin.items()),
    ]
    return "\n".join(lines) + "\n"


def export(weights: Path, notes: Path, path: Path) -> None:
    """Write the network and its contract as one verified ONNX file, as anybody would."""
    scenes = (str(path.parent / "scenes"),)
    settings = ExportSettings(weights=weights, arch="unet", classes=str(notes), verify=scenes, output=path, overwrite=True)
    log.info("%s", export_model(settings).agreement)


def locate(site: Site) -> Affine:
    """The transform of a grid whose pixels are 10 m wide and high, for degrees at the middle of the scene."""
    left, top = site.corner
    if site.crs != "EPSG:4326":
        east, north = Transformer.from_crs("EPSG:4326", site.crs, always_xy=True).transform(left, top)
        return Affine(10, 0, round(east, -1), 0, -10, round(north, -1))
    step, middle = 1e-3, top - site.shape[0] / 2 * 9e-5
    wide, high = (Geod(ellps="WGS84").inv(left, middle, left + dx, middle + dy)[2] for dx, dy in ((step, 0), (0, step)))
    return Affine(10 * step / wide, 0, left, 0, -10 * step / high, top)


def write(path: Path, planes: NDArray[np.integer], site: Site, nodata: int) -> None:
    """Write planes of shape ``(bands, rows, cols)`` as a tiled GeoTIFF; a single one gets the colours of classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiled = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256}
    packed = {"compress": "deflate", "zlevel": 9, "interleave": "band", "predictor": 2 if len(planes) > 1 else 1}
    grid = {"count": len(planes), "height": site.shape[0], "width": site.shape[1], "dtype": planes.dtype}
    place = {"crs": site.crs, "transform": locate(site), "nodata": nodata}
    with rasterio.open(path, "w", **tiled, **packed, **grid, **place) as file:
        file.write(planes)
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION=SOURCE)
        if len(planes) > 1:
            file.descriptions = BANDS
        else:
            file.write_colormap(1, {i: tuple(bytes.fromhex(cover.color[1:])) for i, cover in enumerate(COVERS)})


def evaluate(guess: Callable[[Scene], NDArray[np.intp]], scenes: dict[str, Scene]) -> float:
    """Log how well ``guess`` does on each scene; the mean IoU over the pixels of all."""
    tables = {name: confusion(scene.truth, guess(scene)) for name, scene in scenes.items()}
    tables["all"] = np.sum(list(tables.values()), axis=0)
    for name, table in tables.items():
        each = "  ".join(f"{cover.name} {value:.3f}" for cover, value in zip(COVERS, iou(table), strict=True))
        log.info("%-8s mIoU %.4f  %s", name, iou(table).mean(), each)
    return float(iou(tables["all"]).mean())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--steps", type=int, default=1000, help=f"training steps of {BATCH} crops")
    parser.add_argument("--seed", type=int, default=7, help="everything follows from it")
    return parser.parse_args()


def main() -> None:
    """Make the scenes, train, export, and say how good the result is."""
    options = arguments()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    unseen = {site.name: held_out_scene(options.seed, site) for site in SITES}
    for site in SITES:
        write(options.output / "scenes" / f"{site.name}.tif", unseen[site.name].pixels, site, NODATA)
        write(options.output / "truth" / f"{site.name}.tif", unseen[site.name].truth[None], site, UNKNOWN)
    seen = training_scenes(options.seed)
    spread, start = measure(seen), time.monotonic()
    model = train(seen, spread, steps=options.steps, seed=options.seed)
    log.info("trained in %.0f s\nnearest mean spectrum, on scenes never trained on:", time.monotonic() - start)
    evaluate(partial(nearest_mean, class_means(seen), spread), unseen)
    log.info("U-Net, on scenes never trained on:")
    miou = evaluate(partial(predict, model, spread), unseen)
    weights, notes = options.output / "crops.safetensors", options.output / "classes.toml"
    save_file(model.state_dict(), weights)
    notes.write_text(contract(spread, provenance(options.seed, miou)), encoding="utf-8")
    export(weights, notes, options.output / "crops.onnx")


if __name__ == "__main__":
    main()
