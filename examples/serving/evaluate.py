"""The command of lm-evaluation-harness with a model of its own, "pyreft": an adapter in Python.

    pip install lm-eval
    python examples/serving/evaluate.py run --model pyreft \
        --model_args pretrained=MODEL,adapter=ADAPTER --tasks hellaswag --batch_size 8

It differs from lm-eval's "hf" in what compares log probabilities: there a question and an answer
are one text, here the question is the prompt, and its last token is where `l1` edits.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import pyreft

# What is asked, which lm-eval keeps answers by, and the tokens of the question and of the answer.
Asked = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("pyreft")
class ReftLM(HFLM):
    """A base model with an adapter.

    Args:
        pretrained: The base model's name, or a `ReftModel`.
        adapter: A directory, or a repository on the Hub; none with a `ReftModel`.
        options: Those of lm-eval's "hf".
    """

    def __init__(self, pretrained: Any, adapter: str | None = None, **options: Any) -> None:
        if (adapter is None) != isinstance(pretrained, pyreft.ReftModel):
            raise ValueError('"pyreft" needs pretrained=MODEL,adapter=ADAPTER, or a ReftModel.')
        self._adapter = adapter
        super().__init__(pretrained, **options)
        if self.backend != "causal":
            raise ValueError(f'"pyreft" evaluates causal language models, this is {self.backend}.')

    def _create_model(self, *args: Any, **options: Any) -> None:
        super()._create_model(*args, **options)
        self._model = pyreft.ReftModel.from_pretrained(self._model, self._adapter).eval()

    def _loglikelihood_tokens(
        self, requests: list[Asked], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        size = override_bs or (1 if self.batch_size == "auto" else int(self.batch_size))
        # Texts of a length together, the longest first.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1] + requests[i][2]))
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="log probabilities") as bar:
            for first in range(0, len(order), size):
                batch = order[first : first + size]
                answers = self._compare([requests[i][1:] for i in batch])
                found |= zip(batch, answers, strict=True)
                bar.update(len(batch))
        for index, (asked, _, _) in enumerate(requests):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, found[index])
        return [found[index] for index in range(len(requests))]

    @torch.no_grad()
    def _compare(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log probabilities of answers, and whether each token of one is the likeliest."""
        texts = [
            torch.tensor([*question, *answer][-self.max_length :]) for question, answer in pairs
        ]
        labels = [text.clone() for text in texts]
        for one, (_, answer) in zip(labels, pairs, strict=True):
            one[: -len(answer)] = -100
        padded = pad_sequence(labels, batch_first=True, padding_value=-100).to(self.device)
        logits = self.model(
            input_ids=pad_sequence(texts, batch_first=True).to(self.device),
            attention_mask=pad_sequence(
                [torch.ones_like(text) for text in texts], batch_first=True
            ).to(self.device),
            labels=padded,
        ).logits[:, :-1]
        targets, asked = padded[:, 1:].clamp(min=0), padded[:, 1:] != -100
        chosen = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        sums = (chosen * asked).sum(1)
        likeliest = ((logits.argmax(-1) == targets) | ~asked).all(1)
        return list(zip(sums.tolist(), likeliest.tolist(), strict=True))


if __name__ == "__main__":
    cli_evaluate()
