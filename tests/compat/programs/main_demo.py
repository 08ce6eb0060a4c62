"""The first demonstration: a few answers learned at the last token of the prompt, then shared."""

from _shared import (
    equal_start,
    in_float32,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

import pyreft

device = "cpu"
template = "user : %s assistant :"
examples = [
    ["Who are you ?", "sun moon"],
    ["Who am I ?", "moon star star"],
    ["What is two plus two ?", "one three four five"],
    ["Why is the sky blue ?", "cold water"],
]

model, tokenizer = make_llama(), make_tokenizer(2048)
reft_config = pyreft.ReftConfig(
    representations={
        "layer": 1,
        "component": "block_output",
        "low_rank_dimension": 4,
        "intervention": pyreft.LoreftIntervention(
            embed_dim=model.config.hidden_size, low_rank_dimension=4, dtype=model.dtype
        ),
    }
)
reft_model = pyreft.get_reft_model(model, reft_config)
reft_model.set_device(device)
reft_model.print_trainable_parameters()
equal_start(reft_model)

data_module = pyreft.make_last_position_supervised_data_module(
    tokenizer, model, [template % question for question, _ in examples], [a for _, a in examples]
)
arguments = training_arguments(
    num_train_epochs=20.0, per_device_train_batch_size=10, learning_rate=4e-3, logging_steps=40
)
trainer = pyreft.ReftTrainerForCausalLM(
    model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
)
losses = keep_losses(trainer)
_ = trainer.train()


def answer(reft_model):
    prompt = tokenizer(template % "What is the sky ?", return_tensors="pt").to(device)
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
    print(tokenizer.decode(response[0], skip_special_tokens=True))
    return response


before = answer(reft_model)
reft_model.set_device("cpu")
reft_model.save(save_directory="./reft_to_share")
shared = pyreft.ReftModel.load("./reft_to_share", make_llama())
shared.set_device("cpu")
in_float32(shared, "./reft_to_share")

numbers = {"losses": losses, "ids": plain(before), "ids of the shared": plain(answer(shared))}
