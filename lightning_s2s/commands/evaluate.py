"""`lightning-s2s evaluate answers` and `evaluate speech`: a trained model's figures on held-out questions."""

from __future__ import annotations

from pathlib import Path

from lightning_s2s.commands.messages import CommandError
from lightning_s2s.commands.settings import parse_settings
from lightning_s2s.support.wording import unknown_name

KINDS = {
    "answers": "answer a manifest of spoken questions: emotion heard, replies, latency, report",
    "speech": "word error of speech by an ASR model: of replies, a vocoder or a speech decoder",
}


def run(name: str, arguments: list[str]) -> int:
    """Run one kind of evaluation.

    Raises:
        CommandError: a mistake in the options.
        ValueError: a model or file that the options name is missing or broken.
    """
    program = f"lightning-s2s {name}"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {program} KIND [options]\n\nkinds:")
        for kind, summary in KINDS.items():
            print(f"  {kind:<8} {summary}")
        return 0 if arguments else 2
    kind, *rest = arguments
    if kind not in KINDS:
        raise CommandError(unknown_name("kind of evaluation", kind, KINDS))
    if kind == "answers":
        from lightning_s2s.checkpoints.sources import find_model
        from lightning_s2s.evaluation.answers import EvaluateAnswersConfig, evaluate_answers
        from lightning_s2s.evaluation.runs import read_training_run
        from lightning_s2s.reporting.answers_report import write_report
        from lightning_s2s.reporting.tables import print_metrics, print_table

        settings = parse_settings(f"{program} {kind}", EvaluateAnswersConfig, rest)
        settings.model = str(find_model(settings.model))
        answers, metrics = evaluate_answers(settings)
        page = Path(settings.output_dir) / "report.html"
        write_report(page, settings.title, answers, metrics, [read_training_run(run) for run in settings.runs])
        print_table(answers)
        print_metrics(metrics)
        print(f"\nlisten and look: {page}")
    else:
        from lightning_s2s.evaluation.speech import EvaluateSpeechConfig, evaluate_speech

        evaluate_speech(parse_settings(f"{program} {kind}", EvaluateSpeechConfig, rest))
    return 0
