"""What each task is: its data sets, prompts, answers and generation settings. Data, no code.

Names, prompts and generation settings are upstream's, and the paper's (Wu et al. 2024, section 4
and appendix C). Rows of all data sets have the same fields, see sources.py.
"""

from dataclasses import dataclass, field
from typing import Any

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Task:
    """A task whose answers are generated.

    Args:
        train: Names of the data sets to train on.
        tests: Names of those to evaluate on.
        prompt: Template of a prompt, of the fields of a row.
        prompt_with_input: The same for rows whose field "input" is not empty.
        completion: Template of what is trained on.
        answer: How answers are extracted: "choice", "number", or None if nothing is scored.
        greedy: Arguments of `generate` for greedy decoding.
        decoding: Arguments of `generate` otherwise.
    """

    train: tuple[str, ...]
    tests: tuple[str, ...]
    prompt: str
    completion: str
    prompt_with_input: str | None = None
    answer: str | None = None
    greedy: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE: classes, or a number, of one or two texts.

    Args:
        folder: Its directory in GLUE's own layout.
        texts: Columns of one or two texts.
        label: Column of the label.
        labels: Names of the classes in the order of their ids; None for a number.
        dev: File of the development set.
        header: Columns of files that do not name them.
        metrics: Names of the metrics, see metrics.py; the first one is the paper's.
    """

    folder: str
    texts: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] | None = ("0", "1")
    dev: str = "dev.tsv"
    header: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("accuracy",)

    @property
    def outputs(self) -> int:
        """How many numbers a classifier returns."""
        return 1 if self.labels is None else len(self.labels)


_INSTRUCTIONS = {
    "tests": ("alpaca_eval",),
    "prompt": ALPACA,
    "prompt_with_input": ALPACA_WITH_INPUT,
    "completion": "{output}",
    # The paper's, after RED (arXiv 2402.15179).
    "greedy": {"max_length": 2048, "do_sample": False},
    "decoding": {
        "max_length": 2048,
        "do_sample": False,
        "no_repeat_ngram_size": 5,
        "repetition_penalty": 1.1,
    },
}
_BEAMS = {"do_sample": True, "top_p": 0.75, "top_k": 40, "num_beams": 4, "early_stopping": True}

TASKS = {
    "commonsense": Task(
        train=("commonsense_170k",),
        tests=(
            *("boolq", "piqa", "social_i_qa", "hellaswag"),
            *("winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa"),
        ),
        prompt="{instruction}\n",
        completion="the correct answer is {answer}",
        answer="choice",
        greedy={"max_new_tokens": 32, "do_sample": False},
        decoding={"max_new_tokens": 32, "temperature": 0.1, **_BEAMS},
    ),
    "math": Task(
        train=("math_10k",),
        tests=("MultiArith", "gsm8k", "SVAMP", "mawps", "AddSub", "AQuA", "SingleEq"),
        prompt=ALPACA,
        completion="{output}",
        answer="number",
        greedy={"max_new_tokens": 512, "do_sample": False},
        decoding={"max_new_tokens": 512, "temperature": 0.3, **_BEAMS},
    ),
    "gsm8k": Task(
        train=("gsm8k",),
        tests=("gsm8k",),
        prompt=(
            "{instruction}\nAnswer the above question. First think step by step and then answer "
            "the final number.\n"
        ),
        completion="{output}",
        answer="number",
        greedy={"max_new_tokens": 256, "do_sample": False},
        decoding={
            "max_new_tokens": 256,
            "temperature": 0.1,
            "top_p": 0.95,
            "top_k": 40,
            "do_sample": True,
        },
    ),
    "alpaca": Task(train=("alpaca_data_cleaned",), **_INSTRUCTIONS),
    "instruct": Task(train=("instruct",), **_INSTRUCTIONS),
    "ultrafeedback": Task(train=("ultrafeedback",), **_INSTRUCTIONS),
}

_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
GLUE = {
    "cola": GlueTask(
        "CoLA",
        ("sentence",),
        header=("source", "label", "star", "sentence"),
        metrics=("matthews_correlation",),
    ),
    "mnli": GlueTask(
        "MNLI",
        _PAIR,
        label="gold_label",
        labels=("entailment", "neutral", "contradiction"),
        dev="dev_matched.tsv",
    ),
    "mrpc": GlueTask(
        "MRPC", ("#1 String", "#2 String"), label="Quality", metrics=("accuracy", "f1")
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), labels=_ENTAILMENT),
    "qqp": GlueTask(
        "QQP", ("question1", "question2"), label="is_duplicate", metrics=("accuracy", "f1")
    ),
    "rte": GlueTask("RTE", _PAIR, labels=_ENTAILMENT),
    "sst2": GlueTask("SST-2", ("sentence",)),
    "stsb": GlueTask("STS-B", _PAIR, label="score", labels=None, metrics=("pearson", "spearmanr")),
    "wnli": GlueTask("WNLI", _PAIR),
}
TASK_NAMES = (*TASKS, "glue")
