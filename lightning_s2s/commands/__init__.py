"""The commands of `lightning-s2s`: typed functions, whose files are imported when they are run."""

COMMANDS = {
    "train": ("train:train", "run a recipe, stage after stage: RECIPE.yaml [overrides] [--from STEP] [--to STEP]"),
    "fit": ("fit:fit", "train one stage: --config YAML [--config YAML ...] [overrides] [--resume]"),
    "validate": ("fit:validate", "validate a stage: --config YAML [--ckpt_path FILE]"),
    "plan": ("plan:plan", "memory per GPU before training: --config YAML [--gpus N] [--strategy ddp|fsdp2|one]"),
    "respond": ("respond:respond", "answer a spoken question: MODEL question.wav --out reply.wav --json reply.json"),
    "evaluate answers": ("evaluate:answers", "answer a manifest of questions: replies, latency, report"),
    "evaluate speech": ("evaluate:speech", "word error rate by an ASR model, of replies, vocoder or speech decoder"),
    "ablate": ("ablate:ablate", "run and compare the variants of a study: STUDY.yaml [--dry_run]; resumes"),
    "construct": ("construct:construct", "make a corpus of spoken dialogues: --config YAML [overrides]"),
    "emotion-classifier": ("emotion_classifier:emotion_classifier", "train a classifier of the emotion in a voice"),
    "convert": ("convert:convert", "published OpenS2S checkpoints: --from opens2s | --to opens2s MODEL OUT"),
    "consolidate": ("consolidate:consolidate", "a checkpoint of any number of processes as a model folder: RUN OUT"),
    "manifest": ("manifest:manifest", "a corpus on disk as a manifest: --corpus librispeech --folder DIR --out FILE"),
    "units": ("units:units", "add speech units to a manifest: --vocoder NAME IN.jsonl OUT.jsonl; resumes"),
    "components": ("components:components", "list the encoders, adapters, LLMs, speech decoders and vocoders"),
}
"""Name -> "module:function" in this package, and the line of `lightning-s2s --help`.

The function's parameters are the command's options, see `lightning_s2s.commands.parser`; it returns the exit status,
where None stands for 0.
"""
