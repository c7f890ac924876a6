"""Lightning callbacks for speech-to-speech models.

They are imported eagerly, since a YAML finds callbacks by their short names only after they are imported.
"""

from lightning_s2s.callbacks.audio_logger import AudioLogger
from lightning_s2s.callbacks.line_progress import LineProgress
from lightning_s2s.callbacks.streaming_latency import StreamingLatency
from lightning_s2s.callbacks.throughput import Throughput

__all__ = ["AudioLogger", "LineProgress", "StreamingLatency", "Throughput"]
