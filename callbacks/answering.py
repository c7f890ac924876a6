"""Base of the callbacks that let a model answer spoken questions during validation."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_s2s.components.weights import is_sharded
from lightning_s2s.data.audio import AudioError, AudioReference, decode_audio
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.manifest import ManifestError, read_manifest
from lightning_s2s.streaming.session import respond

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
    from lightning_s2s.streaming.events import Reply


@dataclass(frozen=True)
class SpokenQuestion:
    """The first spoken question of a manifest row, and its reference answer.

    Attributes:
        id: Id of the row.
        waveform: (T,) float32, at the sample rate of the file.
        sample_rate: Sample rate of `waveform` in Hz.
        said: Words of the question; "" if the manifest does not give them.
        emotion: Emotion that the question was said with; "" if unknown.
        answer: The assistant's message that follows the question; None if there is none.
        folder: Folder to which the row's paths are relative.
    """

    id: str
    waveform: np.ndarray
    sample_rate: int
    said: str
    emotion: str
    answer: dict[str, Any] | None
    folder: str

    @property
    def tag(self) -> str:
        """The id, with the characters replaced that TensorBoard does not allow in a tag."""
        return re.sub(r"[^-\w.]+", "_", self.id)

    @property
    def answer_text(self) -> str:
        """Words of the reference answer."""
        items = content_items(self.answer["content"]) if self.answer else []
        return " ".join(item["text"] for item in items if item.get("text"))


def load_questions(manifest: str, num_questions: int) -> list[SpokenQuestion]:
    """Questions of the first `num_questions` rows in which the user speaks, or of fewer if there are fewer.

    Raises:
        ValueError: The manifest is missing or broken, its audio cannot be used, or no row has a spoken question.
    """
    questions: list[SpokenQuestion] = []
    for row in read_manifest(manifest):
        if len(questions) == num_questions:
            break
        for place, message in enumerate(row["messages"]):
            spoken = [item for item in content_items(message["content"]) if item.get("audio")]
            if message["role"] != "user" or not spoken:
                continue
            try:
                audio = decode_audio(AudioReference.parse(spoken[0]["audio"], row["folder"]))
            except AudioError as error:
                raise ManifestError(row["manifest"], row["line"], error.reason, str(error)) from None
            said = spoken[0].get("transcript") or spoken[0].get("text") or ""
            answer = next((m for m in row["messages"][place + 1 :] if m["role"] == "assistant"), None)
            questions.append(
                SpokenQuestion(
                    str(row["id"]),
                    audio.waveform,
                    audio.sample_rate,
                    said,
                    spoken[0].get("emotion") or "",
                    answer,
                    row["folder"],
                )
            )
            break
    if not questions:
        raise ValueError(f"questions: {manifest!r} has no row in which the user speaks (an item with `audio`)")
    return questions


class AnsweringCallback(L.Callback, ABC):
    """Lets the module's model answer spoken questions at the end of a validation.

    Works with every LightningModule whose `model` is a `SpeechToSpeechModel` that can answer; with any other module it
    warns once and does nothing. The sanity check is skipped. The random state of the training is restored, so that a
    run with the callback equals a run without it. Only rank 0 answers, unless the weights are sharded: then all ranks
    answer, and rank 0 logs.

    Args:
        questions: Manifest; its first rows that begin with speech are asked.
        num_questions: Number of questions.
        every_n_validations: Answer after the first validation and then after every n-th.
        greedy: Take the most likely tokens; otherwise sample, with the question's index as the seed.

    Raises:
        ValueError: A number is below 1.
    """

    def __init__(self, questions: str, num_questions: int, every_n_validations: int, greedy: bool):
        super().__init__()
        for name, value in (("num_questions", num_questions), ("every_n_validations", every_n_validations)):
            if value < 1:
                raise ValueError(f"{name}: got {value}; must be at least 1")
        self.manifest, self.num_questions = str(questions), num_questions
        self.every_n_validations, self.greedy = every_n_validations, greedy
        self.questions: list[SpokenQuestion] = []
        self._num_validations = 0
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        # Two callbacks of one class may ask different questions; each needs a state of its own in a checkpoint.
        return self._generate_state_key(questions=self.manifest)

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_validations = state_dict["num_validations"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Read here, so that a missing file stops a training before it starts and not hours later.
        if stage in ("fit", "validate") and not self.questions:
            self.questions = load_questions(self.manifest, self.num_questions)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._num_validations += 1
        if (self._num_validations - 1) % self.every_n_validations:
            return
        model: Any = getattr(pl_module, "model", None)
        if not getattr(model, "can_answer", False):
            self._warn_once(f"{type(pl_module).__name__} has no model that answers speech; this callback does nothing")
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            self._warn_once("a model sharded by FSDPStrategy cannot answer; use the strategy fsdp2")
            return
        if trainer.is_global_zero or is_sharded(model):
            self.answer(trainer, pl_module, model)

    @abstractmethod
    def answer(self, trainer: L.Trainer, pl_module: L.LightningModule, model: SpeechToSpeechModel) -> None:
        """Ask `self.questions` and log the answers; called on rank 0 or, if the weights are sharded, on all ranks."""

    def respond(self, trainer: L.Trainer, model: SpeechToSpeechModel, index: int) -> Reply:
        """The model's reply to `self.questions[index]`, in the trainer's precision."""
        question = self.questions[index]
        with isolate_rng(), trainer.precision_plugin.forward_context():
            return respond(model, question.waveform, question.sample_rate, greedy=self.greedy, seed=index)

    def writers(self, trainer: L.Trainer) -> Iterator[SummaryWriter]:
        """TensorBoard writers on rank 0, none on other ranks; warns once if the trainer has no TensorBoardLogger."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers:
            self._warn_once("no TensorBoardLogger among the trainer's loggers; pictures, audio and text are not logged")
        return (logger.experiment for logger in loggers if trainer.is_global_zero)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}")
