"""Make a gradient-boosted classifier with scikit-learn and write it as ONNX.

`python -m examples.models.gradient_boosted_onnx.make [FOLDER]` trains it in a second on scikit-learn's bundled breast-cancer data;
needs `pip install skl2onnx`. Scaling is part of the pipeline, so it is part of the artefact.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import RobustScaler

from examples.models.export import register_command

MODEL = "gradient-boosted"
FEATURES = 30
INPUTS = (f"features:FP32:-1,{FEATURES}",)
OUTPUTS = ("label:INT64:-1", "probabilities:FP32:-1,2")
HELD_OUT = 140


def data() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """All 569 cases and their labels, shuffled; the last `HELD_OUT` are not trained on."""
    bundle = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(bundle.target))
    return bundle.data[order].astype(np.float32), bundle.target[order].astype(np.int64)


def train() -> Pipeline:
    """Train the classifier."""
    features, labels = (part[:-HELD_OUT] for part in data())
    return make_pipeline(RobustScaler(), GradientBoostingClassifier(n_estimators=80, random_state=0)).fit(features, labels)


def main(folder: Path) -> str:
    """Train and write the artefact; return the command that registers it."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    pipeline = train()
    # Without zipmap, probabilities are a tensor and not a list of dictionaries.
    options = {id(pipeline): {"zipmap": False}}
    model = to_onnx(pipeline, initial_types=[("features", FloatTensorType([None, FEATURES]))], options=options, target_opset=18)
    path = folder / f"{MODEL}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return register_command(MODEL, path, inputs=INPUTS, outputs=OUTPUTS)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))  # its output is the next command
