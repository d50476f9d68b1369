"""How good samples are: metrics between those of the prior and those of real data."""

from experiments.evaluation.cheap import CheapMetric, cheap_metric
from experiments.evaluation.compare import DEFAULT_METRICS, Inception, versions
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.metrics import (
    Metric,
    Metrics,
    columns,
    format_value,
    from_json,
    rows,
    summary,
    table,
    to_json,
)
from experiments.evaluation.points import evaluate_points
from experiments.evaluation.protocols import check_files
from experiments.evaluation.references import ImageReference, PointsReference
from experiments.evaluation.result import Evaluation
from experiments.evaluation.translation import evaluate_translation
from experiments.samples import Samples

__all__ = [
    "DEFAULT_METRICS",
    "CheapMetric",
    "Evaluation",
    "ImageReference",
    "Inception",
    "Metric",
    "Metrics",
    "PointsReference",
    "Samples",
    "cheap_metric",
    "check_files",
    "columns",
    "evaluate_images",
    "evaluate_points",
    "evaluate_translation",
    "format_value",
    "from_json",
    "rows",
    "summary",
    "table",
    "to_json",
    "versions",
]
