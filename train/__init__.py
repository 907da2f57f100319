"""Training: a step over slices, the loop that resumes exactly, checkpoints, metrics, reports, predictions."""

from tesserec.train.checkpoint import Checkpoint, CheckpointError
from tesserec.train.config import TrainConfig
from tesserec.train.evaluate import evaluate_run
from tesserec.train.loop import Interrupted, State, Trainer, Watcher
from tesserec.train.metrics import AUC, GAUC, HistogramAUC, Likelihood, MetricError, RankingMetrics
from tesserec.train.predict import predict_files
from tesserec.train.run import RunError, RunFolder
from tesserec.train.step import StepOptions, TrainingError, apply_gradients, loss_and_gradients

__all__ = [
    "AUC",
    "GAUC",
    "Checkpoint",
    "CheckpointError",
    "HistogramAUC",
    "Interrupted",
    "Likelihood",
    "MetricError",
    "RankingMetrics",
    "RunError",
    "RunFolder",
    "State",
    "StepOptions",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "Watcher",
    "apply_gradients",
    "evaluate_run",
    "loss_and_gradients",
    "predict_files",
]
