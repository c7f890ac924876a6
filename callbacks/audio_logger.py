"""Logs what the model says during training: audio, spectrograms and text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch

from lightning_s2s.callbacks.answering import AnsweringCallback, SpokenQuestion
from lightning_s2s.data.audio import AudioReference, decode_audio
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.manifest import message_units
from lightning_s2s.reporting.pictures import FRAME_RATE_HZ, MelPainter, to_array
from lightning_s2s.reporting.tables import escape_markdown, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
    from lightning_s2s.streaming.events import Reply

Sound = tuple[np.ndarray, int]
"""(T,) float32 in [-1, 1], and its sample rate in Hz."""


class AudioLogger(AnsweringCallback):
    """Logs some questions with the model's replies and the reference answers to TensorBoard after a validation.

    Tags start with the question's id: `question`, `reply` and `reference` as audio at their own sample rates, `mel`
    (their spectrograms side by side on one time scale), and `text` (a table), at the trainer's global step. Missing
    parts are left out, such as the audio of a stage that answers in text. The reference is the recording of the
    manifest's answer or, without one, its units through the model's vocoder.

    Args:
        questions: Manifest; its first rows that begin with speech are asked.
        num_questions: Number of questions.
        every_n_validations: Answer after the first validation and then after every n-th.
        greedy: Take the most likely tokens; otherwise sample, with the question's index as the seed.

    Raises:
        ValueError: A number is out of range; at set-up: the manifest or its audio cannot be used.
    """

    def __init__(self, questions: str, num_questions: int = 4, every_n_validations: int = 1, greedy: bool = True):
        super().__init__(questions, num_questions, every_n_validations, greedy)
        self._painter = MelPainter()

    def answer(self, trainer: L.Trainer, pl_module: L.LightningModule, model: SpeechToSpeechModel) -> None:
        step = trainer.global_step
        for index, question in enumerate(self.questions):
            reply = self.respond(trainer, model, index)
            sounds: dict[str, Sound | None] = {
                "question": (question.waveform, question.sample_rate),
                "reply": None if reply.waveform is None else (to_array(reply.waveform), reply.sample_rate),
                "reference": reference_sound(question, model),
            }
            present = {name: sound for name, sound in sounds.items() if sound is not None and len(sound[0])}
            for writer in self.writers(trainer):
                for name, (waveform, sample_rate) in present.items():
                    writer.add_audio(f"{question.tag}/{name}", torch.from_numpy(waveform[None]), step, sample_rate)
                writer.add_figure(f"{question.tag}/mel", self._draw_mels(present), step)
                writer.add_text(f"{question.tag}/text", _table(question, reply), step)

    def _draw_mels(self, sounds: dict[str, Sound]) -> Figure:
        from matplotlib.figure import Figure

        drawing = Figure(figsize=(3.6 * len(sounds), 2.6), dpi=110, layout="constrained")
        panels = drawing.subplots(1, len(sounds), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, (waveform, sample_rate)) in zip(panels, sounds.items(), strict=True):
            seconds = len(waveform) / sample_rate
            axes.set_title(f"{name}, {seconds:.1f} s", fontsize=9)
            axes.set_xlabel("seconds", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.set_facecolor("#eee")
            if len(waveform) >= sample_rate // FRAME_RATE_HZ:
                levels = self._painter.levels(waveform, sample_rate)
                extent = (0.0, seconds, 0, levels.shape[0])
                axes.imshow(levels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-7.5, vmax=0.5)
        panels[0].set_ylabel("mel band", fontsize=8)
        panels[0].set_xlim(0, max(len(waveform) / sample_rate for waveform, sample_rate in sounds.values()))
        return drawing


def reference_sound(question: SpokenQuestion, model: SpeechToSpeechModel) -> Sound | None:
    """The reference answer as audio: its recording, or its units through the model's vocoder; None without either.

    Raises:
        ValueError: The recording cannot be used, or a unit lies outside the vocoder's codebook.
    """
    if question.answer is None:
        return None
    recordings = [item["audio"] for item in content_items(question.answer["content"]) if item.get("audio")]
    if recordings:
        audio = decode_audio(AudioReference.parse(recordings[0], question.folder))
        return audio.waveform, audio.sample_rate
    vocoder = model.vocoder
    if vocoder is None or not (units := message_units(question.answer, vocoder.num_units)):
        return None
    device = next((parameter.device for parameter in vocoder.parameters()), None)
    was_training = vocoder.training
    vocoder.eval()
    try:
        return to_array(vocoder.synthesize(torch.tensor([units], device=device))[0]), vocoder.sample_rate
    finally:
        vocoder.train(was_training)


def _table(question: SpokenQuestion, reply: Reply) -> str:
    said = f"{question.said} ({question.emotion})" if question.emotion else question.said
    rows = [("question", said), ("reply", reply.text), ("reference", question.answer_text)]
    return markdown_table(["", ""], [(name, escape_markdown(text)) for name, text in rows if text or name == "reply"])
