"""The loss at labelled tokens alone is the loss, and the other logits are never made."""

import copy
import threading
from contextlib import nullcontext

import pytest
import torch
import transformers as hf
from encoder_decoder_models import make_generator
from peft import LoraConfig, get_peft_model
from runs import assert_close, losses, make_trainer, reft_model, weights
from torch.utils._python_dispatch import TorchDispatchMode

import pyreft
from conftest import VOCAB, WIDTH, enlarge, make_base
from pyreft.training import labelled
from pyreft.training.chunks import PlainChunkedLoss
from pyreft.training.labelled import LabelledLoss, UnknownLogitsError

# PEFT asks an old name of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB}
SIZES |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SCALED = {"logits_scaling": 3.0, "embedding_multiplier": 2.0}
HEADS = {
    "llama": lambda: make_base("llama"),
    "tied": lambda: make_base("gpt2"),
    "bias": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES)),
    "softcap": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=2.0)
    ),
    "multiplied": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SIZES, logit_scale=0.3)),
    "divided": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**SIZES, **SCALED)),
    "experts": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, num_local_experts=2)),
    "images": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**VISION),
            text_config=hf.LlamaConfig(**SIZES),
            image_token_index=VOCAB - 1,
        )
    ),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Three tokens of the tiny vocabulary; in a tile a third of it, and something."""
    monkeypatch.setattr(labelled, "CHUNK_BYTES", 3 * 4 * VOCAB)
    monkeypatch.setattr(labelled, "CPU_TILE", (3, VOCAB // 3))


@pytest.fixture
def batch():
    """Eleven tokens have a label; the label of a first token is no target."""
    ids = torch.randint(3, VOCAB - 1, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :7] = labels[1, 1:6] = -100
    return {"input_ids": ids, "labels": labels}


def make(name):
    torch.manual_seed(0)
    return enlarge(HEADS[name]().eval())


def unknown(base):
    """A base model whose config says what the model does not do."""
    base.config.logit_scale = 0.5
    return base


def loss_and_gradients(base, batch, **more):
    base.zero_grad()
    outputs = base(**batch, **more)
    if torch.is_grad_enabled():
        outputs.loss.backward()
    found = {n: p.grad.clone() for n, p in base.named_parameters() if p.grad is not None}
    return outputs.loss.detach(), found


def at_labels(base, batch, once=None, shifted=False, **more):
    """The same, twice at labelled tokens alone: what a model does is compared in the first pass."""
    once = once or LabelledLoss(base, base)
    assert once.reason is None
    with once.only_labelled(shifted):
        try:
            loss_and_gradients(base, batch, **more)
        except UnknownLogitsError:
            loss_and_gradients(base, batch, **more)
        return loss_and_gradients(base, batch, **more)


def assert_same(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, one in found[1].items():
        # Of the order in which a processor sums, 2e-6 of the largest value at some.
        scale = 2 * max(expected[1][name].abs().max().item(), 1e-2)
        torch.testing.assert_close(
            one, expected[1][name], rtol=10 * tolerance, atol=tolerance * scale
        )


class Watch(TorchDispatchMode):
    """The most rows of logits in one tensor; the weight of the head and its views are none."""

    def __init__(self, base):
        super().__init__()
        self.weight = base.get_output_embeddings().weight.data_ptr()
        self.rows = 0

    def look(self, tensor):
        if tensor.shape[-1:] == (VOCAB,) and tensor.data_ptr() != self.weight:
            self.rows = max(self.rows, tensor.numel() // VOCAB)
        return tensor

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, torch.Tensor):
                self.look(one)
        return made


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_are_those_of_all_logits(name, known, batch):
    """Those of what is before the head, and of the head itself."""
    base = make(name)
    expected = loss_and_gradients(base, batch)
    found = at_labels(base if known else unknown(base), batch)
    assert_same(found, expected)
    assert_same(
        at_labels(base, batch, num_items_in_batch=7),
        loss_and_gradients(base, batch, num_items_in_batch=torch.tensor(7)),
    )


def test_they_are_as_near_to_float64_as_those_of_all_logits(batch):
    base = make("softcap")
    exact = loss_and_gradients(copy.deepcopy(base).double(), batch)
    exact = exact[0].float(), {name: grad.float() for name, grad in exact[1].items()}
    assert_same(at_labels(base, batch), exact, 2e-6)


@pytest.mark.parametrize("tile", [(3, 7), (100, 7), (3, 1000), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_loss_by_tiles_is_that_of_float64(tile, scale):
    """Also where all of the probability is one word's, or a later tile has higher logits."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(50, 8) * scale, torch.randn(11, 8)
    weight *= torch.linspace(0.1, 1, 50)[:, None]
    targets = torch.randint(0, 50, (11,))
    exact = hidden.double().requires_grad_()
    logits = exact @ weight.double().T
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    hidden.requires_grad_()
    found = PlainChunkedLoss.apply(weight, True, targets, *tile, hidden)
    assert torch.equal(PlainChunkedLoss.apply(weight, False, targets, *tile, hidden), found)
    gradients = torch.autograd.grad(found, hidden) + torch.autograd.grad(expected, exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(
        gradients[0].double(), gradients[1], rtol=1e-5, atol=scale * 2e-6 * scale
    )


def test_a_loss_by_tiles_of_a_state_that_is_no_number_is_none():
    hidden = torch.full((1, 4), torch.nan)
    assert PlainChunkedLoss.apply(torch.ones(9, 4), True, torch.tensor([3]), 1, 2, hidden).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_loss_of_all_logits(dtype, batch):
    base = make("llama").to(dtype)
    expected = loss_and_gradients(base, batch)
    found = at_labels(base, batch)
    assert found[0].dtype == torch.float32
    assert_same(found, expected, 2e-3 if dtype == torch.float16 else 1e-2)


def test_autocast_gives_the_loss_of_all_logits(batch):
    base = make("softcap")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(at_labels(base, batch), loss_and_gradients(base, batch), 1e-2)


def test_a_lora_on_the_head_learns_the_same(batch):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    base = get_peft_model(make_base("llama"), config)
    expected = loss_and_gradients(base, batch)
    assert len(expected[1]) == 2 + 2 * 3
    assert_same(at_labels(base, batch), expected)


@pytest.mark.parametrize("known", [True, False])
def test_labels_may_be_what_tokens_predict(known, batch):
    base = make("llama")
    expected = loss_and_gradients(base, batch)
    cut = {"input_ids": batch["input_ids"][:, :-1], "labels": batch["labels"][:, 1:]}
    once = LabelledLoss(base if known else unknown(base), base)
    # A token less, and products are rounded otherwise.
    assert_same(at_labels(base, cut, once, shifted=True), expected, 2e-5)


def test_a_batch_without_labels_has_the_loss_that_it_has(batch):
    base, none = make("llama"), {**batch, "labels": torch.full_like(batch["labels"], -100)}
    once = LabelledLoss(base, base)
    assert at_labels(base, none, once)[0].isnan()
    assert at_labels(base, none, once, num_items_in_batch=3)[0] == 0
    with torch.no_grad():
        assert at_labels(base, batch, once)[0] == pytest.approx(base(**batch).loss.item(), rel=1e-6)


# ---- work ----------------------------------------------------------------------------------------


@pytest.fixture
def frozen():
    """A model whose head learns nothing, as with interventions: its gradient is (V, D)."""
    base = make("softcap")
    base.set_output_embeddings(torch.nn.Linear(WIDTH, VOCAB, bias=False).requires_grad_(False))
    return base


def test_no_tensor_is_larger_than_a_chunk(frozen, batch):
    plain, chunked = Watch(frozen), Watch(frozen)
    with plain:
        loss_and_gradients(frozen, batch)
    once = LabelledLoss(frozen, frozen)
    at_labels(frozen, batch, once)
    with once.only_labelled(), chunked:
        loss_and_gradients(frozen, batch)
    assert (plain.rows, chunked.rows) == (24, 3)


def test_what_is_kept_for_backward_has_no_logits(frozen, batch):
    kept = []
    for once in (None, LabelledLoss(frozen, frozen)):
        if once:
            at_labels(frozen, batch, once)
        watch = Watch(frozen)
        keep = torch.autograd.graph.saved_tensors_hooks(watch.look, lambda tensor: tensor)
        with keep, once.only_labelled() if once else nullcontext():
            frozen(**batch)
        kept.append(watch.rows)
    assert kept == [24, 0]


def count_head(trainer, monkeypatch):
    """Tokens that went through the head, one number for each call."""
    head, seen = trainer.model.model.get_output_embeddings(), []
    forward = head.forward

    def counted(hidden):
        seen.append(hidden.shape[:-1].numel())
        return forward(hidden)

    monkeypatch.setattr(head, "forward", counted)
    return seen


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_a_trainer_runs_the_head_on_labels_alone(base, tokenizer, tmp_path, monkeypatch):
    runs = []
    for reuse in (True, False):
        settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
        model = reft_model(base, layers="all", positions="f1+l2")
        trainer = make_trainer(model, tokenizer, tmp_path, reuse_frozen=reuse, **settings)
        trainer.train()
        # What is reused is compared once with what is not.
        trainer.evaluate()
        seen = count_head(trainer, monkeypatch)
        runs.append((trainer, trainer.evaluate()["eval_loss"], sum(seen)))
    assert losses(runs[0][0]) == pytest.approx(losses(runs[1][0]), rel=1e-5)
    assert_close(*(weights(run[0].model) for run in runs), rtol=1e-4, atol=1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-5)
    labelled_tokens = sum(1 + length for length in range(1, 9))  # and the end of each
    assert runs[0][2] == labelled_tokens < runs[1][2]


# ---- where it is not done ------------------------------------------------------------------------


def smooth(tmp_path):
    return {"label_smoothing_factor": 0.1}


def own_loss(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits[:, -2], labels[:, -1])

    return {"compute_loss_func": loss}


class LooksAtLogits(pyreft.ReftTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        assert outputs.logits.shape[:2] == inputs["labels"].shape
        return (loss, outputs) if return_outputs else loss


def subclass(tmp_path):
    return {"cls": LooksAtLogits}


@pytest.mark.parametrize("why", [smooth, own_loss, subclass])
def test_who_needs_the_logits_gets_them_all(why, tokenizer, tmp_path, monkeypatch):
    runs = []
    for reuse in (True, False):
        settings = why(tmp_path) | {"reuse_frozen": reuse, "max_steps": 2}
        trainer = make_trainer(reft_model(), tokenizer, tmp_path, **settings)
        trainer.train()
        trainer.evaluate()
        runs.append(weights(trainer.model))
    assert_close(*runs)


def test_metrics_get_all_logits(tokenizer, tmp_path):
    shapes = []

    def look(prediction):
        shapes.append(prediction.predictions.shape)
        return {}

    trainer = make_trainer(reft_model(), tokenizer, tmp_path, compute_metrics=look)
    trainer.evaluate()
    assert shapes == [(8, 16, VOCAB)]


def watched(base):
    base.lm_head.register_forward_hook(lambda *_: None)
    return base


def own(base):
    base.loss_function = lambda logits, labels, vocab_size, **_: logits.mean()
    return base


def compiled(base):
    base.compile(backend="eager")
    return base


def encoder_decoder(base):
    return make_generator("bart")


def masked(base):
    return hf.RobertaForMaskedLM(hf.RobertaConfig(**{**SIZES, "num_key_value_heads": None}))


def of_all(base):
    base.config.z_loss_coefficient = 0.1
    return base


def without_head(base):
    return make_base("bert")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (watched, "hooks"),
        (own, "not transformers' loss"),
        (compiled, "compiled"),
        (encoder_decoder, "not transformers' loss"),
        (masked, "not transformers' loss"),
        (of_all, "z_loss"),
        (without_head, "no output head"),
    ],
)
def test_what_it_cannot_be_done_for_is_named_and_left_alone(change, reason, batch):
    base = change(make_base("llama"))
    once = LabelledLoss(base, base)
    assert reason in once.reason
    if change in (watched, own, of_all):
        with once.only_labelled():
            assert base(**batch).logits.shape == (2, 12, VOCAB)


def test_a_hook_that_comes_later_sees_all_logits(batch):
    base, seen = make_base("llama"), []
    once = LabelledLoss(base, base)
    at_labels(base, batch, once)
    handle = base.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    with once.only_labelled():
        base(**batch)
    handle.remove()
    assert seen == [(2, 12, VOCAB)]


def test_other_threads_and_later_passes_see_a_plain_model(batch):
    base, seen = make_base("llama"), []
    once = LabelledLoss(base, base)

    def elsewhere():
        seen.append(base(**batch))

    plain = base(**batch)
    with once.only_labelled():
        base(**batch)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        seen.append(base(input_ids=batch["input_ids"]))
    seen.append(base(**batch))
    for outputs in seen:
        assert torch.equal(outputs.logits, plain.logits)
    assert seen[0].loss == seen[2].loss == plain.loss
    assert "_loss_function" not in vars(base)
    assert not base.lm_head._forward_pre_hooks
