"""LoRA and everything that peft trains with it: built, trained, initialised from other weights, saved, exported."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.checkpoints.init_from import load_handoff
from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.lora import without_lora
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from parts.small_sizes import QWEN

LORA = {"r": 2, "target_modules": ["q_proj"]}
KINDS = {
    "matrices": {},
    "copies": {"modules_to_save": ["norm"]},
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "rows": {"trainable_token_indices": [3, 260]},
    "matrices of embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora": {"use_dora": True},
}
IDS = torch.tensor([[3, 5, 260, 7]])
MASK = torch.ones(1, 4, dtype=torch.bool)


@pytest.fixture
def make_llm(tokenizer_folder):
    """A small LLM with seeded weights."""

    def make(seed: int = 0, tied: bool = False, **options) -> CausalLanguageModel:
        torch.manual_seed(seed)
        config = QWEN | {"tie_word_embeddings": tied}
        return CausalLanguageModel(config=config, tokenizer=str(tokenizer_folder), **options)

    return make


def answer(llm: CausalLanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return llm.logits(llm(llm.embed(IDS), MASK))


def train(llm: CausalLanguageModel) -> set[str]:
    """Take a training step; returns the names of the parameters that it changed."""
    before = {name: parameter.detach().clone() for name, parameter in llm.named_parameters()}
    optimiser = torch.optim.SGD([p for p in llm.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's second matrix starts at zero
        logits = llm.logits(llm(llm.embed(IDS), MASK))
        torch.nn.functional.cross_entropy(logits[0], IDS[0].roll(-1)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return {name for name, parameter in llm.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_trained_and_saved(make_llm, tmp_path, kind, tied):
    llm = make_llm(tied=tied, lora=LORA | KINDS[kind])
    assert llm.vocabulary == 263
    before = answer(llm)
    torch.testing.assert_close(before, answer(make_llm(tied=tied)))  # it starts like the base weights
    changed = train(llm)
    assert changed and all("lora_" in name or "modules_to_save" in name or "_delta" in name for name in changed)
    assert not torch.allclose(answer(llm), before)
    model = SpeechToSpeechModel(llm).eval()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model").llm
    assert torch.equal(answer(again), answer(llm))
    assert not any(tensor.is_meta for tensor in [*again.parameters(), *again.buffers()])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_from_weights_without_lora(make_llm, tmp_path, kind, tied):
    below = make_llm(seed=1, tied=tied)
    save_model(SpeechToSpeechModel(below), tmp_path / "stage_1")
    model = SpeechToSpeechModel(make_llm(seed=2, tied=tied, lora=LORA | KINDS[kind]))
    assert not torch.allclose(answer(model.llm), answer(below))
    assert "loaded llm" in load_handoff(model, tmp_path / "stage_1")
    torch.testing.assert_close(answer(model.llm), answer(below))
    assert train(model.llm)
    trained = SpeechToSpeechModel(make_llm(seed=3, tied=tied, lora=LORA | KINDS[kind]))
    save_model(model, tmp_path / "stage_2")
    load_handoff(trained, tmp_path / "stage_2")  # from LoRA to LoRA
    assert torch.equal(answer(trained.llm), answer(model.llm))


def test_rows_are_put_back_to_those_that_were_loaded(make_llm, tmp_path):
    save_model(SpeechToSpeechModel(make_llm(seed=1)), tmp_path / "stage_1")
    model = SpeechToSpeechModel(make_llm(seed=2, lora=LORA | KINDS["rows"]))
    load_handoff(model, tmp_path / "stage_1")
    layer = model.llm.model.get_input_embeddings().token_adapter
    assert torch.equal(layer.trainable_tokens_original["default"], layer.base_layer.weight[[3, 260]])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dora"])
def test_every_kind_is_written_without_lora(make_llm, kind):
    llm = make_llm(lora=LORA | KINDS[kind])
    train(llm)
    plain = make_llm(seed=5)
    plain.load_state_dict(without_lora(llm, llm.state_dict()))
    torch.testing.assert_close(answer(plain), answer(llm), rtol=1e-4, atol=1e-5)


def test_rows_and_copies_are_written_in_their_places_beside_matrices_that_are_kept(make_llm):
    llm = make_llm(lora=LORA | KINDS["rows"] | KINDS["copies"])
    train(llm)
    kept = make_llm(seed=5, lora=LORA)
    kept.load_state_dict(without_lora(llm, llm.state_dict(), keep_matrices=True))
    torch.testing.assert_close(answer(kept), answer(llm))


def test_tied_rows_are_written_and_what_unties_weights_is_refused(make_llm):
    llm = make_llm(tied=True, lora=LORA | KINDS["rows"])
    train(llm)
    plain = make_llm(seed=5, tied=True)
    tensors = without_lora(llm, llm.state_dict())
    plain.load_state_dict(tensors | {"model.lm_head.weight": tensors["model.model.embed_tokens.weight"]})
    torch.testing.assert_close(answer(plain), answer(llm))
    for kind in ("head", "embeddings", "matrices of embeddings"):
        llm = make_llm(tied=True, lora=LORA | KINDS[kind])
        with pytest.raises(ValueError, match="lora: changes the embeddings or the output head, which are one weight"):
            without_lora(llm, llm.state_dict())


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_that_a_checkpoint_lacks_are_trained_with_lora(make_llm, make_byte_tokenizer, tmp_path, tied):
    tokenizer = make_byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    llm = make_llm(tied=tied)
    llm.model.resize_token_embeddings(259)
    llm.model.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    grown = CausalLanguageModel(str(tmp_path / "llm"), lora=LORA)
    new = [259, 260, 261, 262]
    rows = {"embed_tokens": new} if tied else {"embed_tokens": new, "lm_head": new}
    assert grown.init_args["lora"] == LORA | {"trainable_token_indices": rows}
    before = grown.model.get_input_embeddings().weight.detach().clone()
    train(grown)
    after = grown.model.get_input_embeddings().weight.detach()
    different = (before != after).any(dim=1)
    assert different[260] and not different[:259].any()
    save_model(SpeechToSpeechModel(grown), tmp_path / "model")
    assert torch.equal(answer(load_model(tmp_path / "model").llm), answer(grown))


def test_who_trains_embeddings_decides_on_new_tokens(make_llm, make_byte_tokenizer, tmp_path):
    make_llm().model.save_pretrained(tmp_path / "llm")
    make_byte_tokenizer(["<|im_start|>", "<|im_end|>"]).save_pretrained(tmp_path / "llm")
    for kind in ("embeddings", "rows", "matrices of embeddings"):
        lora = LORA | KINDS[kind]
        assert CausalLanguageModel(str(tmp_path / "llm"), lora=lora).init_args["lora"] == lora


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"trainable_token_indices": [10**6]}, "llm causal: lora: index"),
        ({"trainable_token_indices": {"nowhere": [1]}}, "llm causal: lora: "),
        ({"trainable_token_indices": "all"}, "llm causal: lora: "),
        ({"r": 0}, "llm causal: lora: "),
        ({"r": "two"}, "llm causal: lora: "),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "llm causal: lora: megatron_config names code"),
    ],
)
def test_arguments_that_are_refused(make_llm, lora, message):
    with pytest.raises(ValueError, match=message) as refused:
        make_llm(lora=LORA | lora)
    assert "\n" not in str(refused.value)


def test_matrices_made_of_the_weights_cannot_start_from_others(make_llm, tmp_path):
    save_model(SpeechToSpeechModel(make_llm()), tmp_path / "stage_1")
    model = SpeechToSpeechModel(make_llm(lora=LORA | {"init_lora_weights": "pissa"}))
    with pytest.raises(ValueError, match="init_from: .*llm: lora: init_lora_weights 'pissa' changes the weights"):
        load_handoff(model, tmp_path / "stage_1")
