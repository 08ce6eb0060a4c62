"""Rows for names that transformers renamed or removed since pyreft 0.1.0."""

from __future__ import annotations

from pyreft.compat.rows import Argument, Default, Method, Name, Parameter, Row, Value

_TRAINING = ("TrainingArguments", "Seq2SeqTrainingArguments")
_TRL_CONFIGS = ("SFTConfig", "DPOConfig", "RewardConfig", "KTOConfig", "ORPOConfig", "CPOConfig")
_TASKS = ("summarization", "translation", "text2text-generation")


def _training(old: str, new: str = "", **rest: str) -> tuple[Argument, ...]:
    """A row for transformers' training arguments, and one for TRL's configs, which extend them."""
    then, otherwise = rest.get("then", ""), rest.get("otherwise", "None")
    advice, since = rest.get("advice", ""), rest.get("since", "")
    return (
        Argument("transformers", _TRAINING, old, new, then, otherwise, advice=advice, since=since),
        Argument("trl", _TRL_CONFIGS, old, new, then, otherwise, advice=advice, since=since),
    )


TRAINING_ARGUMENTS: tuple[Row, ...] = (
    *_training("evaluation_strategy", "eval_strategy"),
    *_training("no_cuda", "use_cpu"),
    *_training("per_gpu_train_batch_size", "per_device_train_batch_size"),
    *_training("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
    *_training("push_to_hub_token", "hub_token"),
    *_training("push_to_hub_model_id", "hub_model_id"),
    *_training("push_to_hub_organization", advice="write hub_model_id='organization/name'"),
    *_training("torchdynamo", "torch_compile_backend"),
    *_training("warmup_ratio", "warmup_steps", since="5.15"),
    *_training(
        "group_by_length",
        "train_sampling_strategy",
        then='"group_by_length"',
        otherwise='"random"',
        since="5.2",
    ),
    *_training(
        "include_inputs_for_metrics", "include_for_metrics", then='["inputs"]', otherwise="[]"
    ),
    *_training("adafactor", "optim", then='"adafactor"', otherwise='"adamw_torch"'),
    *_training(
        "logging_dir",
        advice="set the environment variable TENSORBOARD_LOGGING_DIR to {value}",
        since="5.15",
    ),
    *_training(
        "dispatch_batches", advice="write accelerator_config={{'dispatch_batches': {value}}}"
    ),
    *_training("split_batches", advice="write accelerator_config={{'split_batches': {value}}}"),
    *_training(
        "fsdp_transformer_layer_cls_to_wrap",
        advice="write fsdp_config={{'transformer_layer_cls_to_wrap': {value}}}",
    ),
    *_training("fsdp_min_num_params", advice="write fsdp_config={{'min_num_params': {value}}}"),
    *_training("sharded_ddp", advice="write fsdp and fsdp_config"),
    *_training("tpu_num_cores", advice="the launcher passes the number of cores"),
    *_training("include_tokens_per_second", advice="write include_num_input_tokens_seen=True"),
    *(
        row
        for old in (
            "overwrite_output_dir",
            "fp16_backend",
            "half_precision_backend",
            "fp16_opt_level",
            "jit_mode_eval",
            "use_ipex",
            "use_mps_device",
            "use_legacy_prediction_loop",
            "past_index",
            "mp_parameters",
            "ray_scope",
            "tpu_metrics_debug",
            "save_safetensors",
        )
        for row in _training(old)
    ),
    Value("transformers", _TRAINING, "optim", -1, "adamw_hf", "adamw_torch"),
    Value("trl", _TRL_CONFIGS, "optim", -1, "adamw_hf", "adamw_torch"),
)

TRAINER: tuple[Row, ...] = (
    Argument("transformers", ("Trainer", "Seq2SeqTrainer"), "tokenizer", "processing_class"),
    Parameter("compute_loss", "num_items_in_batch"),
    Parameter("training_step", "num_items_in_batch"),
    Parameter("log", "start_time"),
)

LOADING: tuple[Row, ...] = (
    Argument("transformers", ("from_pretrained",), "use_auth_token", "token"),
    Argument(
        "transformers",
        ("from_pretrained",),
        "use_flash_attention_2",
        "attn_implementation",
        then='"flash_attention_2"',
        of_models=True,
    ),
    *(
        Argument(
            "transformers",
            ("from_pretrained",),
            f"load_in_{bits}bit",
            "quantization_config",
            then=f"BitsAndBytesConfig(load_in_{bits}bit=True)",
            of_models=True,
        )
        for bits in (8, 4)
    ),
    *(
        Argument(
            "transformers",
            ("from_pretrained",),
            f"bnb_4bit_{option}",
            keep=True,
            of_models=True,
            advice="write it in quantization_config=BitsAndBytesConfig(...)",
        )
        for option in ("compute_dtype", "quant_type", "use_double_quant")
    ),
    Argument("transformers", ("from_pretrained",), "resume_download", of_models=True),
)

_AGENTS = "use the package smolagents"
_OLD_CACHE = "pass cache_implementation to generate(), or use DynamicCache or StaticCache"
NAMES: tuple[Row, ...] = (
    Name("transformers.AdamW", "torch.optim.AdamW"),
    Name("transformers.optimization.AdamW", "torch.optim.AdamW"),
    Argument("transformers", ("AdamW",), "no_deprecation_warning"),
    Argument("transformers", ("AdamW",), "correct_bias", advice="torch always corrects the bias"),
    Default("transformers", "AdamW", "eps", 3, "1e-6"),
    Default("transformers", "AdamW", "weight_decay", 4, "0.0"),
    Name("transformers.AutoModelForVision2Seq", "transformers.AutoModelForImageTextToText"),
    Name(
        "transformers.AutoModelWithLMHead",
        advice="write AutoModelForCausalLM, AutoModelForMaskedLM or AutoModelForSeq2SeqLM",
    ),
    Name("transformers.is_torch_tpu_available", "transformers.is_torch_xla_available"),
    Name("transformers.deepspeed", "transformers.integrations.deepspeed"),
    Name("transformers.modeling_utils.Conv1D", "transformers.pytorch_utils.Conv1D"),
    Name(
        "transformers.modeling_utils.prune_linear_layer",
        "transformers.pytorch_utils.prune_linear_layer",
    ),
    Name(
        "transformers.trainer.ALL_LAYERNORM_LAYERS",
        "transformers.pytorch_utils.ALL_LAYERNORM_LAYERS",
    ),
    Name(
        "transformers.trainer_utils.EvaluationStrategy",
        "transformers.trainer_utils.IntervalStrategy",
    ),
    Name("transformers.utils.get_full_repo_name", "huggingface_hub.get_full_repo_name"),
    Name("transformers.utils.is_offline_mode", "huggingface_hub.is_offline_mode"),
    Name("transformers.utils.send_example_telemetry", advice="remove it"),
    Name("transformers.utils.TRANSFORMERS_CACHE", "huggingface_hub.constants.HF_HUB_CACHE"),
    Name("transformers.TRANSFORMERS_CACHE", "huggingface_hub.constants.HF_HUB_CACHE"),
    Name("transformers.LogitsWarper", "transformers.LogitsProcessor"),
    *(
        Name(f"transformers.{old}", advice="write datasets.load_dataset('text', data_files=...)")
        for old in ("TextDataset", "LineByLineTextDataset")
    ),
    *(Name(f"transformers.{old}", advice=_OLD_CACHE) for old in ("SinkCache", "HybridCache")),
    *(Name(f"transformers.{old}", advice=_AGENTS) for old in ("agents", "load_tool", "Tool")),
    Name("transformers.onnx", advice="use the package optimum-onnx"),
    Name("transformers.TF*", advice="write the class of torch, without TF"),
    Name("transformers.Flax*", advice="write the class of torch, without Flax"),
)

METHODS: tuple[Row, ...] = (
    Method("tokenizer", "encode_plus"),
    Method("tokenizer", "batch_encode_plus"),
    Argument("transformers", ("batch_encode_plus",), "batch_text_or_text_pairs", "text"),
    Method("tokenizer", "as_target_tokenizer", "write tokenizer(text_target=...)"),
    Method("tokenizer", "prepare_seq2seq_batch", "write tokenizer(texts, text_target=...)"),
    Method("tokenizer", "additional_special_tokens", "write extra_special_tokens"),
    Method("model", "to_bettertransformer", "remove it: sdpa is the default attention"),
    Method("model", "reverse_bettertransformer", "remove it"),
    Method("model", "prune_heads", "there is no successor"),
)

PIPELINES: tuple[Row, ...] = tuple(
    Value(
        "transformers",
        ("pipeline",),
        "task",
        0,
        task,
        advice="load the model with its Auto class and call generate()",
    )
    for task in _TASKS
)

ROWS: tuple[Row, ...] = (
    *TRAINING_ARGUMENTS,
    *TRAINER,
    *LOADING,
    *NAMES,
    *METHODS,
    *PIPELINES,
)
