"""sfumato: text-conditional diffusion, every part a plugin.

What this module lists is public: plugins and programs import from here and from nowhere below.
Names that need torch are imported when they are first used, so that `import sfumato` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfumato.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PluginError,
    SfumatoError,
    suggestion,
)
from sfumato.hookspecs import hookimpl
from sfumato.interfaces import (
    Adapter,
    Autoencoder,
    Component,
    Data,
    Denoise,
    Denoiser,
    Guidance,
    Layout,
    Loss,
    LossWeight,
    Metric,
    MetricState,
    NoiseSchedule,
    Objective,
    Sampler,
    Study,
    TextEncoder,
    TimeGrid,
    TimeSampler,
    Tracker,
    option,
    required,
)
from sfumato.measurements import Measured
from sfumato.prediction import PredictionType, like, noised, solve, target, x0_weight
from sfumato.records import (
    Against,
    Batch,
    Branch,
    CheckpointSaved,
    Finding,
    GuidanceStep,
    Guided,
    Losses,
    Noised,
    Opposed,
    PictureSaved,
    Prediction,
    SampleStep,
    Snapshot,
    Space,
    TextEmbedding,
    TrainEnd,
    TrainStart,
    TrainStep,
)
from sfumato.split import Split
from sfumato.tables import TableSchedule

if TYPE_CHECKING:
    from sfumato.bootstrap import Scores, measured, measured_mean
    from sfumato.evaluations import Evaluated, evaluate
    from sfumato.exchange import export_run, import_run
    from sfumato.experiment import Experiment
    from sfumato.modules import (
        AdapterModule,
        AutoencoderModule,
        DenoiserModule,
        JointEncoderModule,
        ObjectiveModule,
        TextEncoderModule,
    )
    from sfumato.pipeline import Pipeline
    from sfumato.randomness import Draw
    from sfumato.ranks import gathered
    from sfumato.registry import Registry, create
    from sfumato.training import train

__version__ = "0.1.0"

_LAZY = {
    "AdapterModule": "modules",
    "AutoencoderModule": "modules",
    "DenoiserModule": "modules",
    "Draw": "randomness",
    "Evaluated": "evaluations",
    "Experiment": "experiment",
    "JointEncoderModule": "modules",
    "ObjectiveModule": "modules",
    "Pipeline": "pipeline",
    "Registry": "registry",
    "Scores": "bootstrap",
    "TextEncoderModule": "modules",
    "create": "registry",
    "evaluate": "evaluations",
    "export_run": "exchange",
    "gathered": "ranks",
    "import_run": "exchange",
    "measured": "bootstrap",
    "measured_mean": "bootstrap",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sfumato.{_LAZY[name]}"), name)


__all__ = [
    "Adapter",
    "AdapterModule",
    "Against",
    "Autoencoder",
    "AutoencoderModule",
    "Batch",
    "Branch",
    "CheckpointError",
    "CheckpointSaved",
    "Component",
    "ConfigError",
    "Data",
    "DataError",
    "Denoise",
    "Denoiser",
    "DenoiserModule",
    "Draw",
    "Evaluated",
    "Experiment",
    "Finding",
    "Guidance",
    "GuidanceStep",
    "Guided",
    "JointEncoderModule",
    "Layout",
    "Loss",
    "LossWeight",
    "Losses",
    "Measured",
    "Metric",
    "MetricState",
    "NoiseSchedule",
    "Noised",
    "Objective",
    "ObjectiveModule",
    "Opposed",
    "PictureSaved",
    "Pipeline",
    "PluginError",
    "Prediction",
    "PredictionType",
    "Registry",
    "SampleStep",
    "Sampler",
    "Scores",
    "SfumatoError",
    "Snapshot",
    "Space",
    "Split",
    "Study",
    "TableSchedule",
    "TextEmbedding",
    "TextEncoder",
    "TextEncoderModule",
    "TimeGrid",
    "TimeSampler",
    "Tracker",
    "TrainEnd",
    "TrainStart",
    "TrainStep",
    "create",
    "evaluate",
    "export_run",
    "gathered",
    "hookimpl",
    "import_run",
    "like",
    "measured",
    "measured_mean",
    "noised",
    "option",
    "required",
    "solve",
    "suggestion",
    "target",
    "train",
    "x0_weight",
]
