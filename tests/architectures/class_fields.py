"""What a tiny model of an architecture needs beside small sizes."""

# In place of a value: the field is left to its default.
DROP = object()
# The configs of models that consist of two of any architecture.
PARTS = {
    "speech-encoder-decoder": {"encoder": "Wav2Vec2Config", "decoder": "BertConfig"},
    "vision-encoder-decoder": {"encoder": "ViTConfig", "decoder": "BertConfig"},
    "encoder-decoder": {"encoder": "BertConfig", "decoder": "BertConfig"},
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_KINDS = ("sliding_attention", "full_attention")
_ALL_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
_MROPE = {"rope_parameters": {**_ROPE["rope_parameters"], "mrope_section": [2, 1, 1]}}
_HALF = {"rope_parameters": {**_MROPE["rope_parameters"], "mrope_section": [1, 1, 0]}}
_ROPE_TYPES = {
    "rope_parameters": dict.fromkeys(_KINDS, _ROPE["rope_parameters"]),
}
_SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [3, 3], "window_size": 2}
_SWIN |= {"image_size": 32, "patch_size": 4, "hidden_size": DROP, "num_layers": DROP}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_d_state": 16}
_MAMBA |= {"mamba_n_groups": 1}
_TOP = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_PERCEIVER = {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2}
_PERCEIVER |= {"num_cross_attention_heads": 1}
_HYBRID = ["linear_attention", "hybrid"] * 2
_DOUBLE = {"attention_hidden_size": 64, "attention_head_dim": 16}
_VOCABULARY = {"vocabulary_map": {"<image>": 99, "<|extra_200|>": 98}}
# Model type -> fields that replace those that `class_configs` makes.
BY_MODEL_TYPE = {
    "qwen2_vl_text": _MROPE,
    "qwen2_5_vl_text": _MROPE,
    "qwen2_5_omni_text": _MROPE,
    "paddleocr_vl_text": _MROPE,
    "glm4v_text": _MROPE,
    "glm46v_text": _MROPE,
    "glm_ocr_text": _MROPE,
    "glm4v_moe_text": _HALF,
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "expand": 1},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "swin": _SWIN,
    "swinv2": {**_SWIN, "pretrained_window_sizes": [0, 0]},
    "donut-swin": _SWIN,
    "maskformer-swin": _SWIN,
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"], **_ROPE_TYPES},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    # Widths of 64 and 128, to which it rounds up.
    "xlstm": {"num_heads": 4, "hidden_size": 128, "embedding_dim": 128, "chunk_size": 4},
    "musicgen_decoder": {"num_codebooks": 2},
    "wav2vec2-conformer": {"vocab_size": 128},
    "cvt": {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "moonshine": {
        "encoder_num_key_value_heads": 4,
        "decoder_num_key_value_heads": 4,
        "encoder_num_attention_heads": 4,
        "decoder_num_attention_heads": 4,
    },
    "axk2": {"head_dim": DROP},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 16},
    "ministral": {**_ROPE, "head_dim": 8},
    "hunyuan_v1_dense": {**_ROPE, "head_dim": 8},
    "hunyuan_v1_moe": {**_ROPE, "head_dim": 8},
    "hunyuan_vl_text": {
        "rope_parameters": {**_ROPE["rope_parameters"], "mrope_section": [1, 1, 1, 1]},
        "head_dim": 8,
    },
    "nemotron": {"num_key_value_heads": 4},
    "dots1": {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, **_TOP},
    "deepseek_v2": _TOP,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "esm": {"vocab_size": 128, "pad_token_id": 0, "mask_token_id": 3},
    "esmc": {**_ALL_HEADS, "vocab_size": 128},
    "dots3_note": _ALL_HEADS,
    "glm5_next_text": _ALL_HEADS,
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [4, 8],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
        "attention_head_size": 8,
    },
    "chameleon": _VOCABULARY,
    "emu3": _VOCABULARY,
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], **_TOP},
    "perceiver": _PERCEIVER,
    "t5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
    "lilt": {"hidden_size": 48},
    "textnet": {"stem_out_channels": 32},
    "efficientnet": {"hidden_dim": 2560},
    "blt_local_encoder": {"hidden_size_global": 32},
    "blt_local_decoder": {"hidden_size_global": 32},
    "bit": {"num_groups": 4, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "wav2vec2-bert": {"vocab_size": 128},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note_text": {
        **_ALL_HEADS,
        "head_dim": 16,
        "per_layer_config": DROP,
        # Of layers with sliding attention.
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    # Gradients of all of its cycles.
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "hrm_text": {"num_layers_per_stack": DROP, "L_bp_cycles": [3, 3]},
    "musicgen_melody_decoder": {"num_codebooks": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "zamba": {"num_hidden_layers": 4, "layers_block_type": _HYBRID, **_DOUBLE},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": _HYBRID,
        "hybrid_layer_ids": DROP,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        **_DOUBLE,
    },
    "neomme": {"rope_parameters": DROP, "head_dim": 16, "partial_rotary_factor": 0.5},
    "mistral4": {"rope_parameters": DROP, "head_dim": DROP},
    "diffusion_gemma_text": {
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "per_layer_config": DROP,
    },
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {**_ROPE["rope_parameters"], "mrope_section": [1, 1, 2]},
    },
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [0, 1],
        "downsample_rate": "1/1",
        "vision_config": {"hidden_size": 64},
    },
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "pix2struct_vision_model": {"patch_embed_hidden_size": 768},
    "step3p5": {"sliding_window": 8},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "mimi": {"upsample_groups": 32},
    "hgnet_v2": {"hidden_sizes": [256, 512, 1024, 2048]},
    "shieldgemma2": {"yes_token_index": 5, "no_token_index": 6, "mm_tokens_per_image": 4},
    "blip-2": {"num_query_tokens": 4, "image_token_index": 99},
    "instructblip": {"num_query_tokens": 4, "image_token_index": 99},
    "instructblipvideo": {"num_query_tokens": 4, "video_token_index": 99},
    "kosmos-2": {"latent_query_num": 4},
}
