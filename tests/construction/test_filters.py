"""Filters: what each measures, and what it leaves out."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from lightning_s2s.construction.dialogue import Dialogue, DialogueTurn, Limit
from lightning_s2s.construction.filters import (
    Duration,
    EmotionAgreement,
    FeelingWords,
    FilterStep,
    NearDuplicates,
    ProsodyAgreement,
    Quality,
    RecordedDialogue,
    ReplyFits,
    SafetyWords,
    SpeakerSimilarity,
    WordCount,
    WordError,
)
from lightning_s2s.construction.filters.text import trigrams
from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.running import ItemFailure, Local, run_step
from lightning_s2s.evaluation.speech import normalise
from parts.construction import Writer
from parts.paths import EXPERIMENTS

RATE = 16_000


def dialogue(text="My brother called.", reply="That is good to hear.", emotion="sad", identity="a", **options):
    turns = (DialogueTurn(text, emotion, reply),)
    values = {"split": "train", "speaker": "bob", "pair": identity} | options
    return Dialogue(identity, values["split"], values["speaker"], turns, values["pair"], values.get("ambiguous", True))


def measured(kind, *dialogues) -> list[dict]:
    return kind.measure([RecordedDialogue(d) for d in dialogues])


def reason(kind, figures: dict) -> str:
    """Why these figures are refused; "" where they are not."""
    rejection = kind.verdict(figures)
    return rejection.reason if rejection else ""


def verdicts(kind, *dialogues) -> list[str]:
    return [reason(kind, figures) for figures in measured(kind, *dialogues)]


# --- words -----------------------------------------------------------------------------------------------------------


def test_word_count():
    assert measured(WordCount(), dialogue("One two.", "It's one, two three four.")) == [
        {"fewest_words": 2, "most_words": 5}
    ]
    kind = WordCount(3, 5)
    texts = [("One two.", "a b c"), ("a b c", "a b c d e f"), ("a b c", "a b c d e")]
    assert verdicts(kind, *(dialogue(*text) for text in texts)) == [
        "fewest_words 2 is below 3", "most_words 6 is above 5", "",
    ]  # fmt: skip


def test_safety_words_are_whole_words_in_any_text(tmp_path):
    kind = SafetyWords()
    assert verdicts(
        kind,
        dialogue("I want to kill  myself."),
        dialogue(reply="Is it a BOMB?"),
        dialogue("The bombastic stabbing pain of Essex."),
    ) == ["says kill myself", "says bomb", ""]
    own = tmp_path / "words.txt"
    own.write_text("# mine\nEssex\n")
    assert verdicts(SafetyWords(str(own)), dialogue("A bomb in Essex.")) == ["says essex"]
    assert SafetyWords(str(own)).identity != kind.identity
    own.write_text("# nothing\n")
    with pytest.raises(ValueError, match="words.txt: holds no words"):
        SafetyWords(str(own))
    with pytest.raises(ValueError, match="safety_words: /nowhere: can't be read"):
        SafetyWords("/nowhere")


def test_feelings_may_stand_in_replies_and_explicit_lines():
    assert verdicts(
        FeelingWords(),
        dialogue("I am so happy and proud."),
        dialogue("I am so happy.", ambiguous=False),
        dialogue(reply="You must be so happy."),
    ) == ["says happy, proud", "", ""]


def test_near_duplicates():
    pytest.importorskip("datasketch", reason="the package datasketch (extra: construction) is not installed")
    kind = NearDuplicates(max_similarity=0.8, max_reply_similarity=0.95)
    first = dialogue("My brother called me about the wedding today.", "How nice that he called you.")
    others = [
        dialogue("My brother called me about the wedding, today!", "Something else altogether.", identity="b"),
        dialogue(first.turns[0].text, "He will call again, I am sure.", "happy", identity="c", pair="a"),
        dialogue("It is raining again in the north.", first.turns[0].reply, identity="d"),
        dialogue("A test of another kind, from the start.", first.turns[0].reply, identity="e", split="test"),
        dialogue("It is raining again in the south.", "Take an umbrella along with you.", identity="f"),
        dialogue("They have found the key.", "They have found the key!", identity="g"),
    ]
    found = verdicts(kind, first, *others)
    assert found[0] == found[2] == found[3] == found[5] == ""
    assert found[1] == "line_similarity 1 is above 0.8: 'My brother called me about the wedding today.'"
    assert found[6] == "echo 1 is above 0.7"
    assert found[4] == "reply_similarity 1 is above 0.95: 'How nice that he called you.'"


def test_similarity_is_that_of_trigrams():
    pytest.importorskip("datasketch", reason="the package datasketch (extra: construction) is not installed")
    assert trigrams("Oh no!") == {" oh", "oh ", "h n", " no", "no "}
    lines = [
        f"They told me that the wedding of my sister will be on a {day} in the old town hall."
        for day in ("Monday", "Sunday")
    ]
    figures = measured(
        NearDuplicates(), *(dialogue(line, f"Reply {n}.", identity=line) for n, line in enumerate(lines))
    )
    a, b = map(trigrams, lines)
    assert figures[1]["line_similarity"] == pytest.approx(len(a & b) / len(a | b), abs=0.001) and len(a & b) > 60
    assert figures[0]["line_similarity"] == 0.0


def test_a_judge(tmp_path):
    pytest.importorskip("json_repair", reason="the package json-repair (extra: construction) is not installed")
    chat = Writer(**{"first": '{"score": 2}', "second": '{"score": "5/5"}', "third": "No idea."})
    kind = ReplyFits(chat, min_score=3, attempts=2)
    assert kind.measure([RecordedDialogue(dialogue(word, "Oh.")) for word in ("first", "second", "third")]) == [
        {"reply_score": 2}, {"reply_score": 5}, {"reply_score": 0},
    ]  # fmt: skip
    assert [reason(kind, {"reply_score": score}) for score in (2, 3, 0)] == [
        "reply_score 2 is below 3", "", "the judge gave no score",
    ]  # fmt: skip
    assert "User (sad): first\nAssistant: Oh." in chat.prompts[0] and len(chat.prompts) == 4
    chat.spoil = {"first": TransientError("the server answered 500")}
    assert kind.measure([RecordedDialogue(dialogue("first"))]) == [ItemFailure("not judged: the server answered 500")]


# --- sound -----------------------------------------------------------------------------------------------------------


def tone(seconds: float, pitch: float = 200.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def heard(
    folder: Path, question: np.ndarray, reply: np.ndarray, of: Dialogue | None = None, rate=RATE
) -> RecordedDialogue:
    names = []
    for kind, sound in (("question", question), ("reply", reply)):
        names.append(str(folder / f"{kind}-{len(list(folder.iterdir()))}.flac"))
        sf.write(names[-1], sound, rate)
    return RecordedDialogue(of or dialogue(), (names[0],), (names[1],), (names[0], names[1]))


def test_duration(tmp_path):
    silence = np.zeros(RATE, np.float32)
    spoken = heard(tmp_path, np.concatenate([tone(1.0), silence]), tone(1.5))
    (figures,) = Duration().measure([spoken])
    assert figures == {"shortest_sec": 1.5, "longest_sec": 2.0, "silence_share": 0.5, "sec_per_word": 0.667}
    assert reason(Duration(), figures) == ""
    assert Duration(min_sec=1.6).verdict(figures).limit == Limit("shortest_sec", "below", 1.6)
    assert reason(Duration(min_sec=1.6), figures) == "shortest_sec 1.5 is below 1.6"
    assert reason(Duration(max_sec=1.9), figures) == "longest_sec 2 is above 1.9"
    assert reason(Duration(max_silence_share=0.4), figures) == "silence_share 0.5 is above 0.4"
    assert reason(Duration(max_sec_per_word=0.5), figures) == "sec_per_word 0.667 is above 0.5"
    at_24_khz = heard(tmp_path, tone(1.0), tone(1.5), rate=24_000)
    assert Duration().measure([at_24_khz])[0]["longest_sec"] == pytest.approx(1.0, abs=0.01)


class Listener:
    """Writes down what it was told to."""

    def __init__(self, *texts: str):
        self.texts, self.languages = list(texts), []

    def transcribe(self, waveforms, languages):
        self.languages += languages
        return [self.texts.pop(0) for _ in waveforms]


def test_word_error_takes_the_worst_turn(tmp_path):
    turns = (
        DialogueTurn("It's the exam.", "sad", "Oh no, tell me."),
        DialogueTurn("One two three four.", "sad", "Okay."),
    )
    of = replace(dialogue(), turns=turns, seed={"language": "German"})
    sound = heard(tmp_path, tone(0.6), tone(0.6), of)
    sound = replace(sound, questions=sound.questions * 2, replies=sound.replies * 2)
    kind = WordError(max_word_error=0.3)
    kind._transcriber = Listener(" It is the exam", "one two four", "Oh no. Tell me", "OK!")
    (figures,) = kind.measure([sound])
    assert figures == {
        "question_word_error": 0.25, "question_heard": ["It is the exam", "one two four"],
        "reply_word_error": 0.0, "reply_heard": ["Oh no. Tell me", "OK!"],
    }  # fmt: skip
    assert kind._transcriber.languages == ["German"] * 4
    assert reason(kind, figures) == ""
    assert reason(WordError(max_word_error=0.2), figures) == "question_word_error 0.25 is above 0.2"
    assert reason(WordError(max_word_error=0.2), figures | {"question_word_error": 0, "reply_word_error": 1.5}) == (
        "reply_word_error 1.5 is above 0.2"
    )


def test_words_of_other_languages_are_compared():
    assert normalise("Ça va? Über-Ärger!") == "ça va über ärger"
    assert normalise("你好，世界。") == "你 好 世 界"


def test_speaker_similarity_is_the_cosine_of_x_vectors(tmp_path):
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    torch.manual_seed(0)
    small = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "conv_dim": (8,), "conv_stride": (160,), "conv_kernel": (320,), "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2, "tdnn_dim": (8, 16), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1),
        "xvector_output_dim": 8,
    }  # fmt: skip
    model = WavLMForXVector(WavLMConfig(**small)).eval()
    model.save_pretrained(tmp_path / "model")
    extractor = Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(tmp_path / "model")
    (tmp_path / "sound").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    same = heard(tmp_path / "sound", tone(1.0), noise)
    other = replace(same, voices=(same.voices[1], same.voices[1]))
    kind = SpeakerSimilarity(str(tmp_path / "model"), min_similarity=0.999)
    first, second = kind.measure([same, other])
    assert first == {"question_voice_similarity": 1.0, "reply_voice_similarity": 1.0} and reason(kind, first) == ""
    with torch.inference_mode():
        loaded = [sf.read(path, dtype="float32")[0] for path in same.voices]
        a, b = (model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).embeddings[0] for sound in loaded)
    expected = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assert second["question_voice_similarity"] == pytest.approx(expected, abs=2e-4) and expected < 0.999
    assert "question_voice_similarity" in reason(kind, second)
    assert len(pickle.dumps(kind)) < 500  # the network stays here


def test_any_audio_classifier_hears_emotion(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    labels = {0: "hap", 1: "sad", 2: "exc"}
    small = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "conv_dim": (8,), "conv_stride": (160,), "conv_kernel": (320,), "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "id2label": labels, "num_feat_extract_layers": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**small)).eval()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.2, 0.4, 0.4]).log())
    model.save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "model")
    (tmp_path / "sound").mkdir()
    kind = EmotionAgreement(str(tmp_path / "model"), {"hap": "happy", "exc": "happy"}, min_probability=0.55)
    sounds = [
        heard(tmp_path / "sound", tone(0.7), tone(0.7), dialogue(emotion=emotion)) for emotion in ("happy", "sad")
    ]
    assert kind.measure(sounds) == [
        {"emotion_probability": 0.6, "emotion_heard": ["happy"]},
        {"emotion_probability": 0.4, "emotion_heard": ["happy"]},
    ]  # fmt: skip
    assert reason(kind, {"emotion_probability": 0.5}) == "emotion_probability 0.5 is below 0.55"
    wrong = heard(tmp_path / "sound", tone(0.7), tone(0.7), dialogue(emotion="angry"))
    with pytest.raises(ValueError, match="filters: emotion: unknown emotion 'angry'; .*known: happy, sad"):
        kind.measure([wrong])
    with pytest.raises(ValueError, match="labels: unknown label 'happ'; did you mean hap"):
        EmotionAgreement(str(tmp_path / "model"), {"happ": "happy"}).measure(sounds)


def test_the_prosody_classifier_hears_emotion(tmp_path):
    pytest.importorskip("pyworld", reason="pyworld (extra: construction) can't be imported", exc_type=ImportError)
    kind = ProsodyAgreement(str(EXPERIMENTS / "tiny" / "emotion_classifier"), min_probability=0.3)
    figures = kind.measure(
        [heard(tmp_path, tone(0.7), tone(0.7), dialogue(emotion=emotion)) for emotion in ("sad", "angry", "happy")]
    )
    assert 0 < sum(f["prosody_probability"] for f in figures) <= 1.0
    assert len({f["prosody_heard"][0] for f in figures}) == 1


def test_quality_scores_question_and_reply(tmp_path):
    kind = Quality(min_mos=2.0, min_reply_mos=3.0)
    kind._network = lambda waveform: waveform.abs().max() * 10
    (figures,) = kind.measure([heard(tmp_path, 0.5 * tone(0.5), tone(0.5))])
    assert figures == {"question_mos": pytest.approx(1.5, abs=0.01), "reply_mos": pytest.approx(3.0, abs=0.01)}
    assert reason(kind, {"question_mos": 1.5, "reply_mos": 4}) == "question_mos 1.5 is below 2"
    assert reason(kind, {"question_mos": 2.5, "reply_mos": 2.9}) == "reply_mos 2.9 is below 3"


# --- as a step -------------------------------------------------------------------------------------------------------


def test_another_threshold_measures_nothing_again(tmp_path):
    sf.write(tmp_path / "q.flac", tone(1.0), RATE)
    item = RecordedDialogue(dialogue(), ("q.flac",), ("q.flac",))
    (result,) = run_step(FilterStep(Duration(), tmp_path), [item], Local(), tmp_path / "steps")
    assert result["figures"]["longest_sec"] == 1.0 and result["usage"]["problems"] == {}

    class Deaf(Duration):
        def measure(self, batch):
            raise AssertionError

    assert run_step(FilterStep(Deaf(max_sec=0.1), tmp_path), [item], Local(), tmp_path / "steps") == [result]
    with pytest.raises(AssertionError):
        other = replace(item, questions=("q.flac", "q.flac"))
        run_step(FilterStep(Deaf(), tmp_path), [other], Local(), tmp_path / "steps")


def test_a_judges_failure_is_no_figure(tmp_path):
    class Moody(Writer):
        def answer(self, request):
            return TransientError("got no answer")

    step = FilterStep(ReplyFits(Moody()), tmp_path)
    assert run_step(step, [RecordedDialogue(dialogue())], Local(), tmp_path / "s") == [
        ItemFailure("not judged: got no answer")
    ]
