"""Sizes of small random models, and options of short runs, that several test files share."""

from __future__ import annotations

WHISPER = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 8,
    "max_source_positions": 1500,
}  # fmt: skip
WHOLE_WHISPER = WHISPER | {
    "encoder_layers": 2, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 10,
    "pad_token_id": 0,
}  # fmt: skip
"""With two layers, of which both may be heard, and the decoder that checkpoints of Whisper have."""
MIMI = {
    "model_type": "mimi", "sampling_rate": 2400, "hidden_size": 16, "num_filters": 2, "upsampling_ratios": [4, 3, 2, 2],
    "codebook_size": 32, "codebook_dim": 8, "num_quantizers": 2, "vector_quantization_hidden_dimension": 8,
    "num_hidden_layers": 1, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "sliding_window": 7, "upsample_groups": 16,
}  # fmt: skip
SHORT_RUN = [
    "--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false",
    "--trainer.accelerator", "cpu", "--data.max_batch_size", "2", "--data.cache_audio", "false",
]  # fmt: skip
"""Options of `fit`; the number of steps and the interval of validation come in front."""
SMALL_LM = {
    "model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 2048,
}  # fmt: skip
TINY_LM = {
    "model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32, "max_position_embeddings": 2048,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip
DEEP_QWEN = QWEN | {"num_hidden_layers": 2}
QWEN2_AUDIO = {
    "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 8,
}  # fmt: skip
WAVEFORM_ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "conv_dim": [8] * 7,
}  # fmt: skip
SSL_ENCODERS = {
    "hubert": {**WAVEFORM_ENCODER, "model_type": "hubert"},
    "hubert, layer norm": {
        **WAVEFORM_ENCODER, "model_type": "hubert", "feat_extract_norm": "layer", "do_stable_layer_norm": True,
    },
    "wavlm": {**WAVEFORM_ENCODER, "model_type": "wavlm"},
    "wav2vec2": {**WAVEFORM_ENCODER, "model_type": "wav2vec2"},
    "wav2vec2-bert": {
        "model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 24, "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3,
    },
}  # fmt: skip
