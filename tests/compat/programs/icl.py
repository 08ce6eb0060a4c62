"""Labels of sentences: a fresh model for each number of shots, against prompts with examples."""

import random

import torch
from _shared import (
    equal_start,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

from pyreft import (
    LoreftIntervention,
    ReftConfig,
    ReftTrainerForCausalLM,
    get_reft_model,
    make_last_position_supervised_data_module,
)

positive = ["a great movie", "a good movie", "great great good", "a true star"]
negative = ["a bad movie", "a bad bad plot", "the plot is cold", "never good"]
model, tokenizer = make_llama(), make_tokenizer(2048)
numbers = {}
for shots in [2, 4, 8]:
    random.seed(42)
    half = shots // 2
    good, bad = random.sample(positive, k=half), random.sample(negative, k=half)
    prompts = [f"{sentence} ->" for sentence in good + bad]
    labels = ["yes"] * half + ["no"] * half
    examples = [f"{p} {label}" for p, label in zip(prompts, labels, strict=True)]
    in_context = " ; ".join(examples)

    reft_config = ReftConfig(
        representations={
            "layer": 1,
            "component": "block_output",
            "intervention": LoreftIntervention(
                embed_dim=model.config.hidden_size, low_rank_dimension=1, dtype=torch.float32
            ),
        }
    )
    reft_model = get_reft_model(model, reft_config)
    reft_model.print_trainable_parameters()
    equal_start(reft_model)
    data_module = make_last_position_supervised_data_module(tokenizer, model, prompts, labels)
    arguments = training_arguments(
        max_steps=5,
        learning_rate=2e-3,
        per_device_train_batch_size=8,
        logging_steps=50,
        save_strategy="no",
        evaluation_strategy="no",
    )
    trainer = ReftTrainerForCausalLM(
        model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
    )
    numbers[f"losses of {shots}"] = keep_losses(trainer)
    _ = trainer.train()

    right = 0
    ids = []
    for sentence in ["a great star", "a bad plot"]:
        prompt = tokenizer(f"{sentence} ->", return_tensors="pt").to("cpu")
        last = prompt["input_ids"].shape[-1] - 1
        arguments = {"max_new_tokens": 4, "do_sample": False, "early_stopping": True}
        arguments["eos_token_id"] = tokenizer.eos_token_id
        _, response = reft_model.generate(
            prompt,
            unit_locations={"sources->base": (None, [[[last]]])},
            intervene_on_prompt=True,
            **arguments,
        )
        text = tokenizer.decode(response[0], skip_special_tokens=True)
        right += text.split("->")[-1].strip() == "yes"
        ids += plain(response)
        long = tokenizer(f"{in_context} ; {sentence} ->", return_tensors="pt").to("cpu")
        ids += plain(model.generate(**long, **arguments))
    numbers[f"right of {shots}"] = right
    numbers[f"ids of {shots}"] = ids
