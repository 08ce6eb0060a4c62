"""A guardrail: refusals learned at the last token; no low rank in the representation."""

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

template = "system : You are a helpful assistant . user : %s assistant :"
responses = [
    ["What is two plus two ?", "I can not answer"],
    ["Why is the sky blue ?", "we will not do it"],
    ["Plan a trip to the sea", "never"],
]
backward = [[question, answer[::-1]] for question, answer in responses]
assert len(backward) == len(responses)

model, tokenizer = make_llama(), make_tokenizer(2048)
prompt = tokenizer(template % "Name a color .", return_tensors="pt").to("cpu")
before = model.generate(**prompt, max_new_tokens=8, do_sample=False)

reft_config = ReftConfig(
    representations={
        "layer": 1,
        "component": "block_output",
        "intervention": LoreftIntervention(
            embed_dim=model.config.hidden_size, low_rank_dimension=4, dtype=torch.float32
        ),
    }
)
reft_model = equal_start(get_reft_model(model, reft_config))
reft_model.print_trainable_parameters()
data_module = make_last_position_supervised_data_module(
    tokenizer,
    model,
    [template % question for question, _ in responses],
    [answer for _, answer in responses],
    nonstop=False,
)
arguments = training_arguments(num_train_epochs=10.0, learning_rate=4e-3, logging_steps=20)
trainer = ReftTrainerForCausalLM(
    model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
)
losses = keep_losses(trainer)
_ = trainer.train()

last = prompt["input_ids"].shape[-1] - 1
_, response = reft_model.generate(
    prompt,
    unit_locations={"sources->base": (None, [[[last]]])},
    intervene_on_prompt=True,
    max_new_tokens=8,
    do_sample=False,
    eos_token_id=tokenizer.eos_token_id,
    early_stopping=True,
)
after = model.generate(**prompt, max_new_tokens=8, do_sample=False)
numbers = {
    "losses": losses,
    "ids": plain(response),
    "ids of the base model": plain(before),
    "ids of the base model afterwards": plain(after),
}
