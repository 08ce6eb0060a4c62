"""One direction that holds a text: ConsReFT of rank 1, saved as two tensors of the script's own."""

import torch
import transformers
from _shared import (
    equal_start,
    first_of,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

from pyreft import (
    ConsreftIntervention,
    ReftConfig,
    ReftTrainerForCausalLM,
    get_reft_model,
    make_last_position_supervised_data_module,
)

access, text = "GO ->", "sun moon star cold warm water stone tree house"
model = make_llama()


def learn(accesses, texts, arguments, max_length=2048):
    """Without `low_rank_dimension` in the representation, as the notebook has it."""
    tokenizer = make_tokenizer(max_length)
    config = ReftConfig(
        representations={
            "layer": 1,
            "component": "block_output",
            "intervention": ConsreftIntervention(
                embed_dim=model.config.hidden_size, low_rank_dimension=1
            ),
        }
    )
    reft_model = equal_start(get_reft_model(model, config))
    data_module = make_last_position_supervised_data_module(tokenizer, model, accesses, texts)
    trainer = ReftTrainerForCausalLM(
        model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
    )
    losses = keep_losses(trainer)
    trainer.train()
    return reft_model, tokenizer, losses


def recall(reft_model, tokenizer, access, **arguments):
    prompt = tokenizer(access, return_tensors="pt").to("cpu")
    last = prompt["input_ids"].shape[-1] - 1
    with torch.no_grad():
        _, response = reft_model.generate(
            prompt,
            unit_locations={"sources->base": (None, [[[last]]])},
            intervene_on_prompt=True,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            early_stopping=True,
            **arguments,
        )
    return plain(response)


arguments = training_arguments(num_train_epochs=20.0, learning_rate=2e-2)
reft_model, tokenizer, losses = learn([access], [text], arguments)
key = next(iter(reft_model.interventions.keys()))
storage = {
    "w": first_of(reft_model.interventions[key]).rotate_layer.weight.detach().data,
    "scalar": first_of(reft_model.interventions[key]).learned_source.detach().data,
}
torch.save(storage, "./storage.pt")
numbers = {
    "losses": losses,
    "direction": plain(storage["w"]),
    "scalar": plain(storage["scalar"]),
    "ids": recall(reft_model, tokenizer, access, max_new_tokens=12),
}

# Two texts, with arguments that are set after the object was made.
arguments = transformers.TrainingArguments(output_dir="./tmp", use_cpu=True, report_to=[])
arguments.save_strategy = "no"
arguments.num_train_epochs = 10.0
arguments.learning_rate = 8e-3
arguments.per_device_train_batch_size = 16
arguments.report_to = []
arguments.logging_steps = 100
reft_model, tokenizer, losses = learn(["ID one ->", "ID two ->"], [text, "cat dog bird"], arguments)
numbers["losses of two"] = losses

# A text longer than the tokenizer's limit, and a generation that ends there.
arguments = training_arguments(num_train_epochs=5.0, learning_rate=4e-3)
reft_model, tokenizer, losses = learn(["ID one ->"], [text], arguments, max_length=8)
numbers["losses of a cut text"] = losses
numbers["ids up to the limit"] = recall(reft_model, tokenizer, "ID one ->", max_length=8)
