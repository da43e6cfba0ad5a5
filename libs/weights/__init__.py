"""It is responsible for naming model weights: one SHA-256 over a manifest of the files that an engine is about to load.
What else stages of pipelines read and make is named so, too.

The digest stands in a node's evidence claims and policy lists it, so a node MUST take it from the very files whose path
its engine is given.
"""

from libs.weights.manifest import Manifest, ManifestMalformed, WeightsDiffer, WeightsFile, read_manifest, require_same
from libs.weights.measuring import MeasuredWeights, Progress, WeightsChanged, WeightsMissing, measure
from libs.weights.packaged import packaged_weights
from libs.weights.remembered import Remembered

__all__ = [
    "Manifest",
    "ManifestMalformed",
    "MeasuredWeights",
    "Progress",
    "Remembered",
    "WeightsChanged",
    "WeightsDiffer",
    "WeightsFile",
    "WeightsMissing",
    "measure",
    "packaged_weights",
    "read_manifest",
    "require_same",
]
