"""The architectures of the installed transformers: the classes of its auto mappings."""

import transformers
from transformers.models.auto import configuration_auto, modeling_auto

MAPPINGS = {
    "causal_lm": "CAUSAL_LM",
    "masked_lm": "MASKED_LM",
    "sequence_classification": "SEQUENCE_CLASSIFICATION",
    "seq2seq_lm": "SEQ_TO_SEQ_CAUSAL_LM",
    "image_text_to_text": "IMAGE_TEXT_TO_TEXT",
    "speech_seq2seq": "SPEECH_SEQ_2_SEQ",
    "image_classification": "IMAGE_CLASSIFICATION",
    "audio_classification": "AUDIO_CLASSIFICATION",
    "ctc": "CTC",
}


def classes(mapping):
    """The names of the model classes of a mapping, each with the name of its config class."""
    found = {}
    names = getattr(modeling_auto, f"MODEL_FOR_{MAPPINGS[mapping]}_MAPPING_NAMES")
    for model_type, several in names.items():
        # pyreft makes its own class known to pipelines there.
        if model_type not in configuration_auto.CONFIG_MAPPING_NAMES:
            continue
        for name in several if isinstance(several, (tuple, list)) else [several]:
            found.setdefault(name, configuration_auto.CONFIG_MAPPING_NAMES[model_type])
    return found


def find_class(name, config_name):
    """A model class, and its config class: that of the text model, if it takes that."""
    model_class, config_class = getattr(transformers, name), getattr(transformers, config_name)
    own = model_class.config_class
    if isinstance(own, type) and not issubclass(config_class, own):
        config_class = own
    return model_class, config_class
