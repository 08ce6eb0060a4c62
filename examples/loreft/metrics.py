"""The metrics of GLUE, from scikit-learn and SciPy."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda labels, predicted: pearsonr(labels, predicted).statistic,
    "spearmanr": lambda labels, predicted: spearmanr(labels, predicted).statistic,
}


def compute(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` of these names.

    A model that returns one number for each text predicts that; any other predicts the class of
    its largest logit.
    """

    def metrics(evaluated: EvalPrediction) -> dict[str, float]:
        logits = evaluated.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        predicted = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)
        labels = np.asarray(evaluated.label_ids)
        return {name: float(METRICS[name](labels, predicted)) for name in names}

    return metrics
