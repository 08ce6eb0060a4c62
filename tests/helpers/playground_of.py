"""A playground with a tiny base model on disk, and adapters of it."""

from conftest import VOCAB, make_base, make_tokenizer, randomize
from pyreft import ReftConfig, get_reft_model
from pyreft.demo import Playground


def save_base(directory, layers=4, seed=0):
    """The path of a directory with a tiny chat model and its tokenizer."""
    base = make_base("llama", seed, vocab_size=VOCAB, num_hidden_layers=layers)
    base.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return str(directory)


def save_adapter(base, directory, seed=1, **config):
    """An adapter that edits strongly, saved; the base model is as it was."""
    given = config or {"layers": [1, 3], "positions": "f1+l2", "rank": 2}
    model = randomize(get_reft_model(base, ReftConfig(**given)), 0.5, seed)
    model.save_pretrained(directory)
    model.unwrap()
    return directory


def make_playground(tmp_path, **sizes):
    return Playground.load(save_base(tmp_path / "base", **sizes))


def ask(playground, prompt, choice=None, new_tokens=6):
    """All that is said of a request, at its end."""
    *_, last = playground.ask(prompt, choice, new_tokens)
    return last
