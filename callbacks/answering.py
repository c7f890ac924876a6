"""What callbacks share that let a model answer spoken questions while it is validated."""

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
    """A manifest row's first spoken question and what should be answered.

    Attributes:
        id: of the row.
        waveform: (T,) float32, as the file has it.
        sample_rate: Hz of `waveform`.
        said: the words, "" when the manifest doesn't give them.
        emotion: it was said with, "" when unknown.
        answer: the manifest's message that follows the question, None when there is none.
        folder: where the row's relative paths start.
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
        """The id with what TensorBoard's tags don't allow replaced."""
        return re.sub(r"[^-\w.]+", "_", self.id)

    @property
    def answer_text(self) -> str:
        """The words of the answer that should be given."""
        items = content_items(self.answer["content"]) if self.answer else []
        return " ".join(item["text"] for item in items if item.get("text"))


def load_questions(manifest: str, num_questions: int) -> list[SpokenQuestion]:
    """The first `num_questions` rows that begin with speech, fewer when the manifest has fewer.

    Raises:
        ValueError: there is no such manifest, it is broken, its audio can't be used, or no row has spoken questions.
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

    Works with every LightningModule whose `model` has `can_answer` and `respond` (see `SpeechToSpeechModel`); with any
    other it says so once and does nothing. The sanity check before a fit is left out. The random state of the training
    is kept, so that a run with the callback equals one without. The first process answers alone, unless the weights
    are sharded over all processes: then all of them answer, and the first one logs.

    Args:
        questions: manifest; its first rows that begin with speech are asked.
        num_questions: how many.
        every_n_validations: answer after the first validation and then after every n-th.
        greedy: take the most likely tokens; otherwise draw, with the question's number as the seed.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, questions: str, num_questions: int, every_n_validations: int, greedy: bool):
        super().__init__()
        for name, value in (("num_questions", num_questions), ("every_n_validations", every_n_validations)):
            if value < 1:
                raise ValueError(f"{name}: got {value}; at least 1 is needed")
        self.manifest, self.num_questions = str(questions), num_questions
        self.every_n_validations, self.greedy = every_n_validations, greedy
        self.questions: list[SpokenQuestion] = []
        self._num_validations = 0
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        # Two callbacks of one kind may ask different questions: each has its own place in a checkpoint.
        return self._generate_state_key(questions=self.manifest)

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_validations = state_dict["num_validations"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Read now: a missing file should stop a training before it starts, not hours later.
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
            self._warn_once("weights that FSDPStrategy shards can't answer; use fsdp2 for that")
            return
        if trainer.is_global_zero or is_sharded(model):
            self.answer(trainer, pl_module, model)

    @abstractmethod
    def answer(self, trainer: L.Trainer, pl_module: L.LightningModule, model: SpeechToSpeechModel) -> None:
        """Ask `self.questions` and log the answers, on the first process or, with sharded weights, on all."""

    def respond(self, trainer: L.Trainer, model: SpeechToSpeechModel, index: int) -> Reply:
        """The model's reply to question number `index`, in the trainer's precision."""
        question = self.questions[index]
        with isolate_rng(), trainer.precision_plugin.forward_context():
            return respond(model, question.waveform, question.sample_rate, greedy=self.greedy, seed=index)

    def writers(self, trainer: L.Trainer) -> Iterator[SummaryWriter]:
        """TensorBoard's writers, on the first process alone; says once when there are none."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers:
            self._warn_once("no TensorBoardLogger among the trainer's loggers; pictures, audio and text are not logged")
        return (logger.experiment for logger in loggers if trainer.is_global_zero)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}")
