"""How vLLM's engine runs requests for LoRAs, which ReFT adapters take the place of.

vLLM is imported by functions alone, in processes that it started.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from pyreft.installed.fact import fact, require_found

if TYPE_CHECKING:
    from numpy import ndarray
    from vllm.lora.request import LoRARequest
    from vllm.model_executor.layers.linear import QKVParallelLinear
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def _parameters(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


@fact("vllm")
def runner_makes_its_manager_of_loras() -> None:
    """A model runner of vLLM makes its manager of LoRAs by load_lora_model, gives it the requests
    of each step by set_active_loras, and runs the model by _model_forward.
    """
    mixin = import_module("vllm.v1.worker.lora_model_runner_mixin").LoRAModelRunnerMixin
    runner = import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    found = _parameters(mixin.load_lora_model)
    require_found(found, ["self", "model", "vllm_config", "device"], "load_lora_model's arguments")
    found = _parameters(mixin.set_active_loras)[:3]
    expected = ["self", "input_batch", "num_scheduled_tokens"]
    require_found(found, expected, "set_active_loras' arguments")
    require_found("_model_forward" in vars(runner), True, "whether there is _model_forward")


@fact("vllm")
def batch_holds_prompts() -> None:
    """A batch of vLLM's model runner holds, for each request in its order, the numbers of tokens
    of its prompt and of those computed before the step, and the number of its LoRA.
    """
    batch = import_module("vllm.v1.worker.gpu_input_batch").InputBatch
    found = set(batch.__init__.__code__.co_names)
    needed = {"num_prompt_tokens", "num_computed_tokens_cpu", "request_lora_mapping"}
    require_found(sorted(needed - found), [], "what a batch lacks")


@fact("vllm")
def forward_context_turns_graphs_off() -> None:
    """The forward context of vLLM says of a forward pass whether it skips what was compiled, and
    which captured graphs it runs.
    """
    context = import_module("vllm.forward_context").ForwardContext
    needed = {"skip_compiled", "cudagraph_runtime_mode"}
    require_found(sorted(needed - set(context.__annotations__)), [], "what it lacks")
    code = import_module("vllm.compilation.decorators")
    require_found("skip_compiled" in inspect.getsource(code), True, "whether models ask for it")


@fact("vllm")
def blocks_are_hashed_with_keys_of_requests() -> None:
    """A block of vLLM's prefix cache is hashed with keys that _gen_lora_extra_hash_keys and
    _gen_prompt_embeds_extra_hash_keys return for a request, the latter for a range of its tokens.
    """
    keys = import_module("vllm.v1.core.kv_cache_utils")
    found = _parameters(keys._gen_lora_extra_hash_keys)
    require_found(found, ["request"], "the arguments of _gen_lora_extra_hash_keys")
    found = _parameters(keys._gen_prompt_embeds_extra_hash_keys)
    expected = ["request", "start_token_idx", "end_token_idx"]
    require_found(found, expected, "the arguments of _gen_prompt_embeds_extra_hash_keys")
    names = keys.generate_block_hash_extra_keys.__code__.co_names
    needed = {"_gen_lora_extra_hash_keys", "_gen_prompt_embeds_extra_hash_keys"}
    require_found(sorted(needed - set(names)), [], "what is not asked for keys")


@fact("vllm")
def requests_pass_one_function() -> None:
    """Requests to vLLM pass InputProcessor.process_inputs, with their LoRA as lora_request, and
    EngineCore.preprocess_add_request, which hashes the blocks of their prompts.
    """
    processor = import_module("vllm.v1.engine.input_processor").InputProcessor
    found = "lora_request" in _parameters(processor.process_inputs)
    require_found(found, True, "whether process_inputs has lora_request")
    core = import_module("vllm.v1.engine.core").EngineCore
    found_names = _parameters(core.preprocess_add_request)
    require_found(found_names, ["self", "request"], "preprocess_add_request's arguments")


@fact("vllm")
def server_lists_loras_in_one_object() -> None:
    """The server of vLLM loads LoRAs by OpenAIServingModels.load_lora_adapter and lists them in its
    lora_requests; _check_model of a route refuses unknown names.
    """
    models = import_module("vllm.entrypoints.openai.models.serving").OpenAIServingModels
    found = _parameters(models.load_lora_adapter)
    require_found(found, ["self", "request", "base_model_name"], "load_lora_adapter's arguments")
    names = models.__init__.__code__.co_names
    require_found("lora_requests" in names, True, "whether it has lora_requests")


@fact("vllm")
def beams_carry_their_request_and_prompt() -> None:
    """A beam of vLLM is a BeamSearchSequence with the prompt as orig_prompt and its LoRA as
    lora_request, and each of its steps is a request of its own.
    """
    beams = import_module("vllm.entrypoints.generate.beam_search.utils").BeamSearchSequence
    needed = {"orig_prompt", "tokens", "lora_request"}
    require_found(sorted(needed - set(_parameters(beams))), [], "what a beam lacks")


@fact("vllm")
def clients_hold_running_requests() -> None:
    """A client of vLLM's engine adds LoRAs by add_lora; its output processor has the running
    requests as request_states, with their LoRA, and counts each by _update_stats_from_finished.
    """
    for module, name in (("async_llm", "AsyncLLM"), ("llm_engine", "LLMEngine")):
        client = getattr(import_module(f"vllm.v1.engine.{module}"), name)
        require_found(
            _parameters(client.add_lora), ["self", "lora_request"], "add_lora's arguments"
        )
        names = client.__init__.__code__.co_names
        require_found("output_processor" in names, True, f"whether {name} has output_processor")
    outputs = import_module("vllm.v1.engine.output_processor")
    names = outputs.OutputProcessor.__init__.__code__.co_names
    require_found("request_states" in names, True, "whether there are request_states")
    names = outputs.RequestState.__init__.__code__.co_names
    require_found("lora_request" in names, True, "whether they have their LoRA")
    found = _parameters(outputs.OutputProcessor._update_stats_from_finished)
    expected = ["self", "req_state", "finish_reason", "iteration_stats"]
    require_found(found, expected, "the arguments of _update_stats_from_finished")


@fact("vllm")
def cpu_platform_checks_configs() -> None:
    """vLLM's platform for CPUs compiles no model in an engine with LoRAs, which
    check_and_update_config decides.
    """
    cpu = import_module("vllm.platforms.cpu").CpuPlatform
    found = _parameters(cpu.check_and_update_config)
    require_found(found, ["vllm_config"], "the arguments of check_and_update_config")


FACTS_OF_SERVING = (
    runner_makes_its_manager_of_loras,
    batch_holds_prompts,
    forward_context_turns_graphs_off,
    blocks_are_hashed_with_keys_of_requests,
    requests_pass_one_function,
    server_lists_loras_in_one_object,
    beams_carry_their_request_and_prompt,
    clients_hold_running_requests,
    cpu_platform_checks_configs,
)


def require_first_runner(runner: object) -> None:
    """Raise ValueError for a model runner that is not of vLLM's first version."""
    first = import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    if not isinstance(runner, first):
        raise ValueError(
            "ReFT adapters are served by vLLM's first model runner: set the environment variable "
            "VLLM_USE_V2_MODEL_RUNNER=0."
        )


def layers_of(model: nn.Module, count: int) -> nn.ModuleList:
    """The layers of a model of vLLM.

    Args:
        model: The model.
        count: The number of layers.

    Raises:
        ValueError: If there is not one list of them.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = [one for one in lists if len(one) == count]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} of the engine has {len(found)} lists of {count} layers, and "
            "adapters are served on models with one."
        )
    return found[0]


def is_missing_layer(layer: nn.Module) -> bool:
    """Whether a layer is in another process, of a pipeline."""
    return type(layer).__name__ == "PPMissingLayer"


def sizes_of_qkv(joined: QKVParallelLinear) -> tuple[int, int, int]:
    """The widths of queries, keys and values in the output of vLLM's module for all three."""
    sizes = joined.output_sizes
    return sizes[0], sizes[1], sizes[2]


@contextmanager
def refusing() -> Iterator[None]:
    """Raise ValueError inside the block as the error for which vLLM's server answers 400."""
    try:
        yield
    except ValueError as error:
        raise import_module("vllm.exceptions").VLLMValidationError(str(error)) from error


@contextmanager
def run_without_graphs() -> Iterator[None]:
    """Run the model inside the block layer by layer, without what was compiled or captured."""
    context = import_module("vllm.forward_context").get_forward_context()
    modes = import_module("vllm.config").CUDAGraphMode
    before = context.skip_compiled, context.cudagraph_runtime_mode
    context.skip_compiled, context.cudagraph_runtime_mode = True, modes.NONE
    try:
        yield
    finally:
        context.skip_compiled, context.cudagraph_runtime_mode = before


def paths_in_use(client: AsyncLLM) -> set[str]:
    """The paths of the LoRAs of all requests that run."""
    states = client.output_processor.request_states.values()
    return {one.lora_request.lora_path for one in states if one.lora_request is not None}


class TextInStep(NamedTuple):
    """A text of a step that has a LoRA.

    Args:
        request: Its name, of which a worker has one at a time.
        adapter, path: The number and the path of its LoRA.
        length: The number of tokens of its prompt.
        ids: The ids of the prompt, None if it came as embeddings.
        offset: The index of its first token in the step.
        start, stop: Its tokens in the step.
    """

    request: str
    adapter: int
    path: str
    length: int
    ids: Sequence[int] | None
    offset: int
    start: int
    stop: int


def texts_of_step(
    runner: GPUModelRunner, num_scheduled_tokens: ndarray
) -> tuple[list[LoRARequest], list[TextInStep]]:
    """The requests for LoRAs in a step of a model runner, and their texts in the step.

    Args:
        runner: The model runner.
        num_scheduled_tokens: (B,), the number of tokens of each request of its batch.
    """
    batch = runner.input_batch
    numbers = batch.request_lora_mapping[: len(num_scheduled_tokens)]
    offsets = num_scheduled_tokens.cumsum() - num_scheduled_tokens
    texts: list[TextInStep] = []
    for index in numbers.nonzero()[0].tolist():
        name = batch.req_ids[index]
        start = int(batch.num_computed_tokens_cpu[index])
        stop = start + int(num_scheduled_tokens[index])
        state, length = runner.requests[name], int(batch.num_prompt_tokens[index])
        where = (int(offsets[index]), start, stop)
        path = state.lora_request.lora_path
        texts.append(
            TextInStep(name, int(numbers[index]), path, length, state.prompt_token_ids, *where)
        )
    return list(batch.lora_id_to_lora_request.values()), texts
