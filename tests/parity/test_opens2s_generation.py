"""The published generation, step by step, against a loop over whole sequences that keeps no cache.

After every N tokens of text M units; an eos among the units ends its group alone while text still comes; after the
text's end the rest of the units; a reply whose units are used up ends, text included. Each case is checked to occur.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.data.audio import load_audio
from lightning_s2s.data.batch import AUDIO_PLACEHOLDER
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.session import respond
from parts.golden import golden_folder
from parts.json_files import change

FOLDER, pytestmark = golden_folder("opens2s_end_to_end", "checkpoint", "user.wav")


@pytest.fixture
def variant(tmp_path):
    """The golden checkpoint with another N:M and other limits and ends."""

    def make(interleave: str, text: dict, units: dict) -> SpeechToSpeechModel:
        folder = tmp_path / f"variant{len(list(tmp_path.iterdir()))}"
        shutil.copytree(FOLDER / "checkpoint", folder)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        change(folder / "config.json", interleave_strategy=interleave)
        change(folder / "generation_config.json", **text)
        change(folder / "tts" / "generation_config.json", **units)
        return load_model(folder)

    return make


@pytest.fixture(scope="module")
def question():
    return torch.as_tensor(load_audio("user.wav", FOLDER, 16_000))


@torch.inference_mode()
def reference(model: SpeechToSpeechModel, question: torch.Tensor) -> tuple[list[int], list[int]]:
    """Text ids and unit ids (offset subtracted), as the published code's loop gives them."""
    llm, decoder = model.llm, model.speech_decoder
    text_left, text_eos = llm.generation.max_new_tokens, llm.generation.eos_token_ids
    audio, _ = model.encode_audio(question.unsqueeze(0), torch.tensor([len(question)]))
    ids = torch.tensor(llm.tokenizer.encode_prompt([{"role": "user", "content": [{"audio": "x"}]}], spoken=True))
    place = int((ids == AUDIO_PLACEHOLDER).nonzero())
    embedded = llm.embed(ids.clamp(min=0))
    written = torch.cat([embedded[:place], audio[0], embedded[place + 1 :]]).unsqueeze(0)
    spoken = decoder.embed_speaker(torch.zeros(1, 512))
    embed_unit = decoder.lm.get_input_embeddings()
    text, units, finished = [], [], False
    while not finished:
        for _ in range(min(decoder.interleave.num_conditions, text_left)):
            hidden = llm(written, torch.ones(written.shape[:2], dtype=torch.bool))[:, -1:]
            text.append(int(llm.logits(hidden).argmax()))
            written = torch.cat([written, llm.embed(torch.tensor([[text[-1]]]))], dim=1)
            spoken = torch.cat([spoken, decoder.project(hidden, torch.tensor([text[-1:]]))], dim=1)
            text_left -= 1
            if text[-1] in text_eos:
                break
        finished = text[-1] in text_eos or text_left < 1
        units_left = decoder.max_units - len(units)
        if units_left < 1:
            break
        for _ in range(units_left if finished else min(decoder.interleave.num_units, units_left)):
            units.append(int(decoder.lm(inputs_embeds=spoken).logits[0, -1].argmax()))
            spoken = torch.cat([spoken, embed_unit(torch.tensor([[units[-1]]]))], dim=1)
            if units[-1] in decoder.eos_ids:
                break
    return text, [unit - decoder.unit_offset for unit in units]


def compare(model: SpeechToSpeechModel, question: torch.Tensor) -> tuple[list[int], list[int]]:
    text, units = reference(model, question)
    reply = respond(model, question, 16_000, greedy=True)
    assert (reply.text_ids, reply.unit_ids) == (text, units)
    return text, units


@pytest.mark.parametrize("interleave", ["1:1", "1:2", "2:5", "4:8", "3:1", "7:3", "50:2"])
def test_ratios(interleave, variant, question):
    text, units = compare(variant(interleave, {"max_new_tokens": 11}, {"max_new_tokens": 40}), question)
    assert len(text) == 11 and units


def test_text_ends_by_its_eos(variant, question):
    whole, _ = compare(variant("2:3", {"max_new_tokens": 9}, {"max_new_tokens": 60}), question)
    token = next(token for token in whole[1:] if token != whole[0])
    end = whole.index(token)
    text, units = compare(variant("2:3", {"eos_token_id": [token], "max_new_tokens": 9}, {}), question)
    assert text == whole[: end + 1] and units  # the closing token is given out, too


def test_an_eos_of_the_units_ends_its_group_while_text_comes_and_speech_after_it(variant, question):
    limits = {"max_new_tokens": 12}, {"max_new_tokens": 60}
    _, units = compare(variant("2:4", *limits), question)
    model = variant("2:4", *limits)
    offset = model.speech_decoder.unit_offset
    ends = 0
    for unit in dict.fromkeys(units):  # each unit that occurs as the end, by an id or a list of them
        eos = unit + offset if ends % 2 else [unit + offset]
        text, shorter = compare(variant("2:4", limits[0], {"eos_token_id": eos, **limits[1]}), question)
        assert len(text) == 12
        ends += len(shorter) < len(units) and unit in shorter[:-1]
        if ends == 4:
            break
    assert ends


def test_units_that_are_used_up_end_the_text(variant, question):
    whole, _ = compare(variant("2:6", {"max_new_tokens": 12}, {"max_new_tokens": 500}), question)
    for limit in (6, 7, 11, 12, 13):
        text, units = compare(variant("2:6", {"max_new_tokens": 12}, {"max_new_tokens": limit}), question)
        assert text == whole[: len(text)] and len(text) < 12 and len(units) <= limit


def test_sampling_follows_the_generation_configs(variant, question):
    """Without `greedy`: drawn where the configs say so, with their temperature and cuts; greedy where they don't."""
    plain = variant("2:3", {"max_new_tokens": 8}, {"max_new_tokens": 20})
    likely = respond(plain, question, 16_000, greedy=True)
    assert respond(plain, question, 16_000, greedy=False, seed=1).text_ids == likely.text_ids
    hot = {"do_sample": True, "temperature": 5.0, "top_k": 0}
    drawn = variant("2:3", {"max_new_tokens": 8, **hot}, {"max_new_tokens": 20, **hot})
    first, again = (respond(drawn, question, 16_000, greedy=False, seed=1) for _ in range(2))
    assert (first.text_ids, first.unit_ids) == (again.text_ids, again.unit_ids)
    assert first.text_ids != likely.text_ids and first.unit_ids != likely.unit_ids
    assert respond(drawn, question, 16_000, greedy=True).text_ids == likely.text_ids
    cut = {"do_sample": True, "temperature": 5.0, "top_k": 1}
    only = variant("2:3", {"max_new_tokens": 8, **cut}, {"max_new_tokens": 20, **cut})
    assert respond(only, question, 16_000, greedy=False).unit_ids == likely.unit_ids


def test_no_limit_is_the_published_limit(variant, question):
    model = variant("4:8", {"max_new_tokens": None}, {"max_new_tokens": None})
    assert (model.llm.generation.max_new_tokens, model.speech_decoder.max_units) == (512, 512)
