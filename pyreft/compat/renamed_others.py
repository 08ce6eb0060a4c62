"""Rows for names that TRL, datasets, PEFT and others renamed or removed since pyreft 0.1.0."""

from __future__ import annotations

from pyreft.compat.rows import Argument, Method, Name, Override, Row


def _to_config(trainer: str, config: str, names: dict[str, str]) -> tuple[Argument, ...]:
    """Arguments that moved from a TRL trainer to its config."""
    advice = "remove it, and write {new}={{value}} in the {config}(...) that is passed as args"
    return tuple(
        Argument("trl", (trainer,), old, keep=True, advice=advice.format(new=new, config=config))
        for old, new in names.items()
    )


def _same(names: str) -> dict[str, str]:
    return {name: name for name in names.split()}


def _without_successor(callables: tuple[str, ...], names: str) -> tuple[Argument, ...]:
    return tuple(Argument("trl", callables, old) for old in names.split())


DATASETS: tuple[Row, ...] = (
    Argument("datasets", ("load_dataset",), "use_auth_token", "token"),
    Argument("datasets", ("load_dataset",), "task"),
    Argument(
        "datasets",
        ("load_dataset",),
        "ignore_verifications",
        "verification_mode",
        then='"no_checks"',
    ),
    Name("datasets.load_metric", "evaluate.load"),
    Name("datasets.list_datasets", "huggingface_hub.list_datasets"),
    Name("datasets.set_caching_enabled", advice="write enable_caching() or disable_caching()"),
)

_LOADER = "write dataloader_config=DataLoaderConfiguration({name}={{value}})"
OTHERS: tuple[Row, ...] = (
    Name("peft.prepare_model_for_int8_training", "peft.prepare_model_for_kbit_training"),
    *(
        Argument("accelerate", ("Accelerator",), name, advice=_LOADER.format(name=name))
        for name in ("dispatch_batches", "even_batches", "use_seedable_sampler")
    ),
    Argument("accelerate", ("Accelerator",), "logging_dir", "project_dir"),
    Argument(
        "huggingface_hub", ("hf_hub_download", "snapshot_download"), "use_auth_token", "token"
    ),
    *(
        Argument("huggingface_hub", ("hf_hub_download", "snapshot_download"), old)
        for old in ("resume_download", "local_dir_use_symlinks")
    ),
    Name("huggingface_hub.HfFolder", advice="write get_token() and login()"),
    Name("huggingface_hub.cached_download", advice="write hf_hub_download()"),
    Name("huggingface_hub.Repository", advice="write upload_folder() and snapshot_download()"),
)

TRL: tuple[Row, ...] = (
    Argument(
        "trl",
        ("SFTTrainer", "DPOTrainer", "RewardTrainer", "KTOTrainer"),
        "tokenizer",
        "processing_class",
    ),
    *_to_config(
        "SFTTrainer",
        "SFTConfig",
        _same("dataset_text_field packing eval_packing dataset_num_proc")
        | _same("dataset_kwargs model_init_kwargs")
        | {"max_seq_length": "max_length", "neftune_noise_alpha": "neftune_noise_alpha"},
    ),
    *_to_config(
        "DPOTrainer",
        "DPOConfig",
        _same("beta label_smoothing loss_type max_length truncation_mode disable_dropout")
        | _same("precompute_ref_log_probs dataset_num_proc model_init_kwargs"),
    ),
    *_to_config("RewardTrainer", "RewardConfig", _same("max_length")),
    Argument("trl", ("SFTConfig",), "max_seq_length", "max_length"),
    Argument("trl", ("SFTConfig",), "use_liger", "use_liger_kernel"),
    *_without_successor(
        ("SFTTrainer", "SFTConfig"), "dataset_batch_size num_of_sequences chars_per_token"
    ),
    Argument("trl", ("SFTTrainer",), "infinite"),
    *_without_successor(
        ("DPOTrainer", "DPOConfig"),
        "label_pad_token_id padding_value is_encoder_decoder generate_during_eval"
        " max_target_length",
    ),
    *(
        Argument(
            "trl",
            ("DPOTrainer", "DPOConfig"),
            old,
            keep=True,
            advice="remove it: the reference is ref_model, or the model with its adapter off",
        )
        for old in ("model_adapter_name", "ref_adapter_name", "force_use_ref_model")
    ),
    *(
        Argument(
            "trl",
            ("DPOTrainer", "DPOConfig"),
            old,
            keep=True,
            advice="remove it: max_length is that of the prompt and the answer together",
        )
        for old in ("max_prompt_length", "max_completion_length")
    ),
    *(
        Name(f"trl.{name}{end}", f"trl.experimental.{name.lower()}.{name}{end}")
        for name in ("ORPO", "CPO")
        for end in ("Trainer", "Config")
    ),
    *(
        Override("trl", "DPOTrainer", method, "see docs/trainers.md: DPOTrainer needs no subclass")
        for method in ("concatenated_forward", "concatenated_inputs", "get_batch_loss_metrics")
    ),
    Name(
        "trl.DataCollatorForCompletionOnlyLM",
        advice="give SFTTrainer a data set with the columns prompt and completion",
    ),
    Name("trl.setup_chat_format", advice="write clone_chat_template()"),
    *(
        Name(f"trl.{old}", advice="there is no successor: use GRPOTrainer or RLOOTrainer")
        for old in ("PPOTrainer", "PPOConfig", "AutoModelForCausalLMWithValueHead")
    ),
)

UPSTREAM: tuple[Row, ...] = (
    Method(
        "reft_model.config",
        "representations",
        "write reft_model.reft_config.representations; config is the base model's",
    ),
    Method(
        "reft_model.config",
        "intervention_types",
        "write the kinds of reft_model.reft_config.representations",
    ),
    Name(
        "pyvene",
        advice="pyreft no longer installs it: its base classes are in pyreft.interventions too. "
        "Write ReftModel for IntervenableModel, and remove entries of type_to_module_mapping, "
        "which no architecture needs",
    ),
)

ROWS: tuple[Row, ...] = (*TRL, *DATASETS, *OTHERS, *UPSTREAM)
