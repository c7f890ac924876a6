"""Where steps run: in this process, in several, or on a Ray cluster."""

from lightning_s2s.construction.running.base import ItemFailure, PipelineStep, Runner, run_step
from lightning_s2s.construction.running.local import Local
from lightning_s2s.construction.running.ray import Ray

__all__ = ["ItemFailure", "Local", "PipelineStep", "Ray", "Runner", "run_step"]
