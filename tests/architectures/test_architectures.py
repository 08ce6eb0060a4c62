"""One class of each structural family in every run; all classes of transformers by a marker.

`python tests/architectures/run.py` says the same of all, and writes docs/architectures.md.
"""

import pytest
import transformers
from auto_mappings import MAPPINGS, classes
from class_checks import check_all
from class_inputs import working_inputs
from one_class import build, calibrate, run_class

# Model class and its mapping: what is particular about it.
FAMILIES = {
    "Qwen3MoeForCausalLM": "causal_lm",  # experts
    "BertForMaskedLM": "masked_lm",  # attention with its residual sum
    "T5ForConditionalGeneration": "seq2seq_lm",  # two stacks
    "ViTForImageClassification": "image_classification",  # patches
    "ResNetForImageClassification": "image_classification",  # (B, C, H, W), stages
    "WavLMForCTC": "ctc",  # frames, some of them padding
    "WhisperForConditionalGeneration": "speech_seq2seq",  # frames, then text
    "SpeechT5ForSpeechToText": "speech_seq2seq",  # a decoder of ids that are called sound
    "KyutaiSpeechToTextForConditionalGeneration": "speech_seq2seq",  # several ids for a token
    "GraniteSpeech5ForCTC": "ctc",  # stacked frames
    "HrmTextForCausalLM": "causal_lm",  # layers that run in cycles
    "Dots3NoteForCausalLM": "causal_lm",  # layers of several sizes
    "XLNetLMHeadModel": "causal_lm",  # hidden states as a cache
}


@pytest.fixture(autouse=True)
def quiet():
    """What transformers says of tiny models is not what is tested."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_edited(name):
    mapping = FAMILIES[name]
    if name not in classes(mapping):
        pytest.skip("the installed transformers does not have it")
    model = build(name, classes(mapping)[name])
    inputs = working_inputs(model)
    calibrate(model, inputs)
    failed = {check: why for check, why in check_all(model, inputs, mapping).items() if why}
    assert not failed


@pytest.mark.architectures
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("mapping", "name"), [(mapping, name) for mapping in MAPPINGS for name in classes(mapping)]
)
def test_every_class_is_edited_or_not_built(mapping, name):
    outcome = run_class(mapping, name, classes(mapping)[name])
    if outcome.unbuilt:
        pytest.skip(outcome.unbuilt)
    assert outcome.failed is None
