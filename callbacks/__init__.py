"""Lightning callbacks for models that answer speech with speech.

They are imported here, and not on first use: only then does a YAML find them by their short names.
"""

from lightning_s2s.callbacks.audio_logger import AudioLogger
from lightning_s2s.callbacks.line_progress import LineProgress
from lightning_s2s.callbacks.streaming_latency import StreamingLatency
from lightning_s2s.callbacks.throughput import Throughput

__all__ = ["AudioLogger", "LineProgress", "StreamingLatency", "Throughput"]
