"""Names of array types that many annotations have."""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
