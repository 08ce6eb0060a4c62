"""The web demonstrations: a shared model, and a reply token by token from a thread."""

from threading import Thread

import torch
from _shared import equal_start, in_float32, make_llama, make_tokenizer
from transformers import TextIteratorStreamer

import pyreft
from pyreft import ReftModel

tokenizer = make_tokenizer(2048)
template = "user : %s assistant :"


def share(folder):
    config = pyreft.ReftConfig(
        representations={
            "layer": 1,
            "component": "block_output",
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=64, low_rank_dimension=4, dtype=torch.float32
            ),
        }
    )
    equal_start(pyreft.get_reft_model(make_llama(), config)).save(folder)


share("./reft_emoji_chat")
model = make_llama()
reft_model = ReftModel.load("./reft_emoji_chat", model, from_huggingface_hub=False)
in_float32(reft_model, "./reft_emoji_chat").set_device("cpu")


def generate(message, history, max_new_tokens=8):
    """What the page calls for each message; yields the reply as it grows."""
    prompt = tokenizer(template % message, return_tensors="pt").to("cpu")
    last = prompt["input_ids"].shape[-1] - 1
    streamer = TextIteratorStreamer(
        tokenizer, timeout=10.0, skip_prompt=True, skip_special_tokens=True
    )
    arguments = {
        "base": {
            "input_ids": prompt["input_ids"],
            "attention_mask": prompt["attention_mask"],
        },
        "unit_locations": {"sources->base": (None, [[[last]]])},
        "max_new_tokens": max_new_tokens,
        "intervene_on_prompt": True,
        "streamer": streamer,
        "eos_token_id": tokenizer.eos_token_id,
        "early_stopping": True,
        "do_sample": False,
    }
    thread = Thread(target=reft_model.generate, kwargs=arguments)
    thread.start()
    outputs = []
    for text in streamer:
        outputs.append(text)
        yield "".join(outputs)
    thread.join()


replies = []
for message in ["Who are you ?", "Why is the sky blue ?"]:
    *_, reply = generate(message, [])
    print(reply)
    replies.append(reply)
numbers = {
    reply_of: tokenizer(reply)["input_ids"]
    for reply_of, reply in zip(["first", "second"], replies, strict=True)
}
