"""Controllable speech: one interface for every engine that speaks, each in a file of its own."""

from lightning_s2s.construction.speech.base import SpeechError, SpeechSynthesizer
from lightning_s2s.construction.speech.espeak import Espeak
from lightning_s2s.construction.speech.kokoro import Kokoro
from lightning_s2s.construction.speech.piper import Piper
from lightning_s2s.construction.speech.server import SpeechServer

__all__ = ["Espeak", "Kokoro", "Piper", "SpeechError", "SpeechServer", "SpeechSynthesizer"]
