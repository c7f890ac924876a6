"""`lightning-s2s evaluate answers` and `evaluate speech`: figures of a trained model on held-out questions."""

from __future__ import annotations

from pathlib import Path

from lightning_s2s.evaluation.answers import EvaluateAnswersConfig, evaluate_answers
from lightning_s2s.evaluation.speech import EvaluateSpeechConfig, evaluate_speech


def answers(config: EvaluateAnswersConfig) -> None:
    """Answer a manifest of spoken questions: emotion heard, replies, latency, report.

    Args:
        config: Its fields are the command's options.

    Raises:
        ValueError: A model or file is missing or broken.
    """
    from lightning_s2s.checkpoints.sources import find_model
    from lightning_s2s.evaluation.runs import read_training_run
    from lightning_s2s.reporting.answers_report import write_report
    from lightning_s2s.reporting.tables import print_conditions, print_metrics, print_table

    config.model = str(find_model(config.model))
    runs = [read_training_run(run) for run in config.runs]
    evaluation = evaluate_answers(config)
    page = Path(config.output_dir) / "report.html"
    write_report(page, config.title, evaluation.answers, evaluation.metrics, runs, conditions=evaluation.scores)
    print_table(evaluation.answers)
    print_conditions(evaluation.scores)
    print_metrics(evaluation.metrics)
    print(f"\nlisten and look: {page}")


def speech(config: EvaluateSpeechConfig) -> None:
    """Measure the word error rate of speech by an ASR model: of replies, a vocoder or a speech decoder.

    Args:
        config: Its fields are the command's options.

    Raises:
        ValueError: A model or file is missing or broken.
    """
    evaluate_speech(config)
