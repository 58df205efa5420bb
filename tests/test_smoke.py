import numpy as np
import rasterio
from networks import pixelwise


def test_labels_of_a_pixelwise_model_are_those_of_numpy(raster, run_serial, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (3, 150, 170), dtype=np.uint8)
    source = raster("in/a.tif", pixels, nodata=0)
    out = run_serial(source, pixelwise(tmp_path / "m.onnx"))
    with rasterio.open(out / "a.tif") as mask:
        assert mask.read(1).max() < 3
