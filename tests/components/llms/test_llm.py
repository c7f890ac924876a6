"""`causal`: how it is trained (full, frozen, LoRA, checkpointed), and checkpoints and tokenizers that it refuses."""

from __future__ import annotations

import copy
import logging
import os

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.scale.blocks import checkpoint_activations
from lightning_s2s.scale.parallelize import ScalingOptions, parallelize
from lightning_s2s.stages import SpeechUnderstandingPretraining
from lightning_s2s.stages.freezing import set_frozen_to_eval
from parts.small_models import build
from parts.small_sizes import DEEP_QWEN, QWEN
from parts.tolerances import assert_equal_but_for_rounding

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def make_llm(tokenizer_folder):
    """Small LLMs with the same weights for the same options."""

    def make(config: dict = DEEP_QWEN, **options) -> CausalLanguageModel:
        torch.manual_seed(0)
        return CausalLanguageModel(config=config, tokenizer=str(tokenizer_folder), **options)

    return make


@pytest.fixture
def saved_llm(make_llm, tmp_path):
    """A folder as transformers writes it: weights, configuration and tokenizer."""
    llm = make_llm()
    folder = tmp_path / "saved_llm"
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return folder


def loss_and_gradients(llm: CausalLanguageModel) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients of the inputs and of all that is trained, and how often a layer was run."""
    runs = []
    llm.model.base_model.layers[0].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    generator = torch.Generator().manual_seed(1)
    embedded = torch.randn(2, 7, llm.width, generator=generator, requires_grad=True)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    hidden_states = llm(embedded + llm.embed(torch.arange(7)), mask)
    loss = torch.nn.functional.cross_entropy(llm.logits(hidden_states)[mask], torch.arange(11))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in llm.named_parameters() if parameter.grad is not None}
    return loss.detach(), gradients | {"inputs": embedded.grad}, len(runs)


@pytest.mark.parametrize(
    ("options", "frozen", "num_trained"),
    [({}, (), 25), ({}, ("embed_tokens",), 24), ({}, ("",), 0), ({"lora": LORA}, (), 8)],
    ids=["full", "embeddings frozen", "frozen", "lora"],
)
def test_activation_checkpointing_changes_neither_loss_nor_gradients(make_llm, options, frozen, num_trained):
    results = []
    for checkpointing in (False, True):
        llm = make_llm(**options)
        if checkpointing:
            checkpoint_activations(llm)
        for name, parameter in llm.named_parameters():
            if any(part in name for part in frozen):
                parameter.requires_grad_(False)
        llm.train(num_trained > 0)  # a part that is wholly frozen is in eval mode while the others train
        results.append(loss_and_gradients(llm))
    (loss, gradients, runs), (loss_again, gradients_again, runs_again) = results
    assert (runs, runs_again) == (1, 2)  # the backward pass computes it again
    assert len(gradients) == num_trained + 1 and gradients.keys() == gradients_again.keys()
    assert torch.equal(loss, loss_again)
    for name, gradient in gradients.items():
        assert_equal_but_for_rounding(gradients_again[name], gradient)
        assert gradient.abs().sum() > 0 or "lora_A" in name  # beside B of zeros, A has none in the first step


def test_activation_checkpointing_leaves_streaming_and_folders_alone(tokenizer_folder, tmp_path, make_llm):
    llm = make_llm().eval()
    checkpoint_activations(llm)
    embedded = llm.embed(torch.randint(0, 256, (1, 6)))
    state = llm.start_stream()
    streamed = [llm.stream(piece, state) for piece in embedded.split([3, 1, 2], dim=1)]  # with gradients, too
    whole = llm(embedded, torch.ones(1, 6, dtype=torch.bool))
    assert_equal_but_for_rounding(torch.cat(streamed, dim=1), whole)
    copied = copy.deepcopy(llm)
    assert copied.model.base_model.layers[0].forward.args[0].__self__ is copied.model.base_model.layers[0]

    model = build(tokenizer_folder, speaks=False)
    checkpointed = SpeechToSpeechModel(llm, model.encoder, model.adapter)
    save_model(checkpointed, tmp_path / "model")
    again = load_model(tmp_path / "model").llm
    assert_equal_but_for_rounding(again(embedded, torch.ones(1, 6, dtype=torch.bool)), whole)


def test_a_stage_freezes_a_checkpointed_llm_and_trains_through_it(make_llm):
    stage = SpeechUnderstandingPretraining(
        make_llm(), MelEncoder(width=16, num_layers=1, num_heads=2), ConvAdapter((5,), 8),
        freeze=["llm.*", "encoder.*"], scaling=ScalingOptions(activation_checkpointing=["llm"]),
    )  # fmt: skip
    parallelize(stage.model, stage.scaling, SingleDeviceStrategy("cpu"), "32-true")
    stage.train()
    set_frozen_to_eval(stage.model)
    assert not stage.model.llm.training and stage.model.adapter.training
    runs = []
    stage.model.llm.model.base_model.layers[0].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    audio, lengths = stage.model.encode_audio(0.1 * torch.randn(1, 16_000), torch.tensor([16_000]))
    stage.model.llm(audio, torch.ones(1, int(lengths), dtype=torch.bool)).sum().backward()
    trained = {name for name, parameter in stage.model.named_parameters() if parameter.grad is not None}
    assert len(runs) == 2
    assert trained and all(name.startswith("adapter.") for name in trained)


def test_lora_alone_is_trained_and_can_be_frozen_in_part(make_llm):
    def trained(freeze: list[str]) -> set[str]:
        stage = SpeechUnderstandingPretraining(
            make_llm(lora=LORA), MelEncoder(width=16, num_layers=1, num_heads=2), ConvAdapter((5,), 8),
            freeze=["encoder.*", "adapter.*", *freeze],
        )  # fmt: skip
        return {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}

    both = trained([])
    assert len(both) == 2 * 2 * 2 and all(".lora_A." in name or ".lora_B." in name for name in both)
    assert trained(["llm.*layers.0.*"]) == {name for name in both if ".layers.1." in name}
    assert trained(["llm.*embed_tokens*"]) == both
    with pytest.raises(ValueError, match="every parameter is frozen"):
        trained(["llm.*"])


def test_lora_survives_a_folder(make_llm, tmp_path):
    model = SpeechToSpeechModel(make_llm(lora=LORA | {"init_lora_weights": False})).eval()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    embedded, mask = torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)
    assert torch.equal(model.llm(embedded, mask), again.llm(embedded, mask))
    without = make_llm()
    assert not torch.allclose(without(embedded, mask), model.llm(embedded, mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {"rank": 2}}, "llm causal: lora: LoraConfig.*unexpected keyword argument 'rank'"),
        ({"lora": {"target_modules": ["nope"]}}, "llm causal: lora: Target modules .*nope.* not found"),
        ({"dtype": "float"}, "llm causal: dtype: got 'float'; allowed: float32, bfloat16, float16"),
        ({"config": DEEP_QWEN | {"hidden_size": "wide"}}, "config: no causal LM .*'qwen3' .*expected int, got str"),
        ({"config": QWEN | {"hidden_sise": 16}}, "'qwen3' .unknown key 'hidden_sise'; did you mean hidden_size.."),
        ({"config": {"model_type": "rwkv", "num_hidden_layers": 1, "hidden_size": 16}}, "'rwkv' .division by zero."),
        (
            {"config": {"model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 16, "state_size": 4}},
            "llm causal: MambaForCausalLM can't answer in a stream: it takes no past_key_values",
        ),
    ],
)
def test_options_that_are_refused(make_llm, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_llm(**options)
    assert "\n" not in str(error.value)


def test_dtype(make_llm, saved_llm):
    assert make_llm(dtype="bfloat16").embed(torch.tensor([1])).dtype == torch.bfloat16
    assert CausalLanguageModel(str(saved_llm), dtype="float16").embed(torch.tensor([1])).dtype == torch.float16


def test_embeddings_grow_by_the_special_tokens_that_a_tokenizer_lacks(make_byte_tokenizer, make_llm, tmp_path):
    plain = make_byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    folder = tmp_path / "plain"
    plain.save_pretrained(folder)
    llm = make_llm(QWEN)
    llm.model.resize_token_embeddings(259)
    llm.model.save_pretrained(folder)
    grown = CausalLanguageModel(str(folder))
    assert (grown.vocabulary, len(grown.tokenizer), grown.tokenizer.audio_start_id) == (263, 263, 259)
    assert torch.equal(grown.embed(torch.arange(259)), llm.embed(torch.arange(259)))


def test_a_checkpoint_of_another_kind_is_refused(make_llm, tmp_path, caplog):
    saved_llm = tmp_path / "saved_llm"
    make_llm(QWEN | {"hidden_size": 24}).model.save_pretrained(saved_llm)
    with caplog.at_level(logging.ERROR, "transformers"), pytest.raises(ValueError) as error:
        WhisperEncoder(str(saved_llm))
    assert str(error.value).startswith(f"{saved_llm}: is no checkpoint of WhisperForConditionalGeneration: it lacks ")


def test_a_tokenizer_with_more_tokens_than_the_checkpoint_is_refused(make_llm, tokenizer_folder, tmp_path):
    folder = tmp_path / "weights"
    llm = make_llm(QWEN)
    llm.model.resize_token_embeddings(200)
    llm.model.save_pretrained(folder)
    with pytest.raises(ValueError) as error:
        CausalLanguageModel(str(folder), tokenizer=str(tokenizer_folder))
    expected = f"llm causal: tokenizer {tokenizer_folder} has 257 tokens, checkpoint {folder} 200 embeddings"
    assert str(error.value) == expected


def test_a_tokenizer_of_another_llm_is_refused(saved_llm, make_byte_tokenizer, tmp_path):
    assert CausalLanguageModel(str(saved_llm), tokenizer=str(saved_llm)).vocabulary == 263
    other = make_byte_tokenizer(["<|other|>", "<|im_end|>", "<|im_start|>"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError) as error:
        CausalLanguageModel(str(saved_llm), tokenizer=str(tmp_path / "other"))
    assert str(error.value) == (
        f"llm causal: tokenizer {tmp_path / 'other'} has other ids than checkpoint {saved_llm}, for 6 of 263 tokens"
    )


@pytest.mark.slow
def test_smollm2_with_lora_and_checkpointing():
    folder = os.environ.get("SMOLLM2_135M")
    if not folder:
        pytest.skip("set SMOLLM2_135M to a folder of HuggingFaceTB/SmolLM2-135M-Instruct to run this test")
    ids = None
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        llm = CausalLanguageModel(folder, lora=LORA).train()
        if checkpointing:
            checkpoint_activations(llm)
        ids = torch.tensor([llm.tokenizer.encode_prompt([{"role": "user", "content": "Hello!"}], spoken=False)])
        llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool)).square().mean().backward()
        gradients.append({name: p.grad for name, p in llm.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == 30 * 2 * 2 and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_equal_but_for_rounding(gradients[1][name], gradient)
