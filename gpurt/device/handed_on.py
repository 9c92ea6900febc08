"""What the device layer hands on to the host on purpose, each with its reason: explain() and the docs give it.

Everything that ONNX defines is on a device, is a function of what is, or is listed here; a test keeps it so. Whoever
adds a row to the table takes the operator out of here.
"""

from __future__ import annotations

from typing import Final

_GROUPS: Final = {
    "control flow is the core's own: its bodies run wherever their nodes can": "If Loop Scan",
    "it becomes an initializer when the model is loaded": "Constant",
    "what it asks for is known without the data": "Shape Size",
    "the size of its result depends on the data": "Compress NonMaxSuppression NonZero Unique",
    "sequences and optionals live on the host": (
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty "
        "SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence"
    ),
    "strings live on the host": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "it decodes a file format, which is done on the host": "ImageDecoder",
    "random numbers are drawn on the host, so that a seed gives the same ones with every provider": (
        "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
    ),
    "it is made once from numbers that are constant nearly always": "MelWeightMatrix",
    "no device kernel has been written for it yet": "Det",
}
_ML: Final = {
    "maps live on the host": "CastMap DictVectorizer ZipMap",
    "its keys may be strings, which live on the host": "CategoryMapper LabelEncoder OneHotEncoder",
    "it walks trees, element by element, which suits the host better": (
        "TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor"
    ),
    "classic machine learning works on little data, which is not worth a copy": (
        "ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LinearClassifier LinearRegressor Normalizer "
        "SVMClassifier SVMRegressor Scaler"
    ),
}
_TRAINING: Final = {
    "it becomes ordinary nodes when the model is loaded": "Gradient",
    "an optimiser's step runs once a batch, and no device kernel has been written for it yet": "Adagrad Adam Momentum",
}

HANDED_ON: Final[dict[tuple[str, str], str]] = {
    (domain, op_type): reason
    for domain, groups in (("", _GROUPS), ("ai.onnx.ml", _ML), ("ai.onnx.preview.training", _TRAINING))
    for reason, op_types in groups.items()
    for op_type in op_types.split()
}
"""(domain, operator) -> why no device has it."""
