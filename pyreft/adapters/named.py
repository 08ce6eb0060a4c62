"""Several adapters on one base model, by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from pyreft.adapters.active import BASE
from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.build import Kinds
from pyreft.adapters.fitting import (
    fit_tensors,
    load_tensors,
    require_base,
    require_sizes,
    with_kinds,
)
from pyreft.base_model.trained import TrainedModules, remember_learning
from pyreft.compat.formats import FILE_PATTERNS, read_any
from pyreft.config import ReftConfig
from pyreft.config.combination import combine
from pyreft.config.fields import read_weights
from pyreft.sharing import AdapterError, find_adapter

# What a module of modules has by itself cannot name one of them.
_TAKEN = set(dir(nn.ModuleDict())) | {BASE}


class AdaptersMixin:
    """The part of `ReftModel` that has several adapters; names and meanings are PEFT's.

    model.load_adapter("other", adapter_name="other")
    model.set_adapter("other")                            # in place of the active one
    model.set_adapter(["default", "other"], [0.5, 0.5])   # both, their edits added up
    model.delete_adapter("default")
    """

    # What `ReftModel` defines.
    model: Any
    adapters: Any
    training: bool
    _hooks: Any
    _active: dict[str, float]
    _disabled: int

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters that edit and learn."""
        return list(self._active)

    @property
    def active_adapter(self) -> str:
        """The name of the active adapter, the first of several, which is saved and trained."""
        return next(iter(self._active))

    @property
    def _adapter(self) -> AttachedAdapter:
        """The active adapter, the first of several."""
        return self.adapters[next(iter(self._active))]

    @property
    def interventions(self) -> nn.ModuleDict:
        """The modules of the active adapter, "layer_15_comp_block_output_unit_pos_nunit_1#0"."""
        return self._adapter.interventions

    @property
    def trained(self) -> TrainedModules:
        """The parts of the base model that the active adapter trains, `modules_to_save`."""
        return self._adapter.trained

    @property
    def reft_config(self) -> ReftConfig:
        """The config of the active adapter, every intervention spelled out."""
        return self._adapter.config

    @reft_config.setter
    def reft_config(self, value: Any) -> None:
        # Scripts keep upstream's config here, and put the base model's in its place.
        if value is not self.model.config and value is not self._adapter.config:
            raise AttributeError("the config of an adapter cannot be replaced: add_adapter.")

    def add_adapter(self, adapter_name: str, config: ReftConfig) -> None:
        """Add a fresh adapter, which is not active yet.

        Args:
            adapter_name: Letters, digits, "_" and "-".
            config: What to learn and where.

        Raises:
            ValueError: If there is an adapter of the name, or the config does not fit the model;
                nothing is changed.
            TypeError: If `config` is no `ReftConfig`.
            RuntimeError: Inside `disable_adapter`, or after `unwrap`.
        """
        self._require_new(adapter_name)
        if not isinstance(config, ReftConfig):
            raise TypeError(f"an adapter is made of a ReftConfig, got {type(config).__name__}.")
        with self._making(config) as adapter:
            pass
        self.adapters[adapter_name] = adapter

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
    ) -> None:
        """Add an adapter that does what several do together, each by its weight.

        A weight of 1 merges, others scale, -1 negates. At different places the interventions stand
        side by side; at one place they become one, of all their ranks, which must edit subspaces
        that have nothing in common, but for the kinds without orthonormal directions. Unlike
        several active adapters it costs no more than one, and can be saved and shared. It is not
        active yet.

        Args:
            adapters: Their names.
            weights: The weight of the edits of each.
            adapter_name: What to call it: letters, digits, "_" and "-".

        Raises:
            ValueError: If edits cannot be scaled or joined, with the reason, or a weight is not
                finite; nothing is changed.
            TypeError: If a weight is not a number.
        """
        names = list(adapters)
        self._require_known(names)
        given = read_weights(weights, len(names))
        if trained := [name for name in names if self.adapters[name].trained.names]:
            raise ValueError(
                f"the adapter {trained[0]!r} has trained a head, and heads cannot be added up."
            )
        parts = [self.adapters[name].config.representations for name in names]
        combined = combine(list(zip(parts, given, strict=True)))
        self.add_adapter(adapter_name, ReftConfig(representations=combined))

    def load_adapter(
        self,
        source: str | os.PathLike,
        adapter_name: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        kinds: Kinds = (),
    ) -> None:
        """Load a saved adapter beside those that there are; it is not active yet.

        If there is an adapter of the name, its weights are replaced in place: nothing is hooked or
        compiled anew. Both must then have the same config.

        Args:
            source: Where `save_pretrained` wrote, or another library; or a repository on the Hub.
            adapter_name: What to call it: letters, digits, "_" and "-".
            revision, token, subfolder, cache_dir, local_files_only, kinds: As for
                `from_pretrained`.

        Raises:
            AdapterError: If there is no adapter, or it does not fit; nothing is changed.
            ValueError: If `adapter_name` cannot be a name.
            RuntimeError: Inside `disable_adapter`, or after `unwrap`.
        """
        require_name(adapter_name)
        directory = find_adapter(
            source,
            revision=revision,
            token=token,
            subfolder=subfolder,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            others=FILE_PATTERNS,
        )
        saved = read_any(directory)
        if kinds:
            saved = with_kinds(saved, kinds)
        require_base(saved, self.model)
        if saved.lora is not None:
            raise AdapterError(
                f"{saved.origin} has PEFT's LoRA, which goes with one adapter alone: load it "
                "with ReftModel.from_pretrained, on a base model of its own."
            )
        if adapter_name in self.adapters:
            there: Any = self.adapters[adapter_name]
            there.load(saved, self.model, there.trained.learned(), {})
            return
        require_sizes(saved)
        try:
            with self._making(saved.config) as adapter:
                trained, modules = adapter.trained.tensors(), adapter.interventions
                load_tensors(fit_tensors(saved, adapter.config, modules, trained, {}))
        except AdapterError:
            raise
        # A kind of the user's own may fail in any way on arguments it does not expect.
        except Exception as error:
            raise AdapterError(f"the adapter {saved.origin} does not fit: {error}") from error
        self.adapters[adapter_name] = adapter

    def set_adapter(
        self, adapter_name: str | Sequence[str], weights: Sequence[float] | None = None
    ) -> None:
        """Make adapters active, in place of those that are.

        What each edit adds to a hidden state is computed from that state as it was, multiplied by
        the weight, and added up. Active adapters learn; the others are frozen.

        Args:
            adapter_name: A name, or several.
            weights: How much of the edits of each is made; all of it by default.

        Raises:
            ValueError: If a name is not there, a weight is not finite, or two have heads of their
                own for one part of the base model; nothing is changed.
            TypeError: If a weight is not a number.
            RuntimeError: Inside `disable_adapter`, or after `unwrap`.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._require_known(names)
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"set_adapter takes different names, and at least one, got {names}; for none there "
                "is disable_adapter()."
            )
        given = read_weights([1.0] * len(names) if weights is None else weights, len(names))
        self._require_on()
        trained = [name for n in names for name in self.adapters[n].trained.tensors()]
        if shared := {name for name in trained if trained.count(name) > 1}:
            raise ValueError(
                f"{' and '.join(names)} have each trained {min(shared)} of the base model, which "
                "can be one of them alone."
            )
        for name in reversed(self._active):
            self.adapters[name].take_off()
        self._active = dict(zip(names, given, strict=True))
        for name in names:
            self.adapters[name].put_on()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter. If no other is active, the first of the others becomes so.

        Raises:
            ValueError: If there is no such adapter, or no other one.
        """
        self._require_known([adapter_name])
        others = [name for name in self.adapters if name != adapter_name]
        if not others:
            raise ValueError(
                f"{adapter_name!r} is the only adapter: unwrap() gives the base model back."
            )
        if adapter_name in self._active:
            left = {name: w for name, w in self._active.items() if name != adapter_name}
            self.set_adapter(list(left) or others[:1], list(left.values()) or None)
        del self.adapters[adapter_name]
        self._keep_hooks()

    @contextmanager
    def _making(self, config: ReftConfig) -> Iterator[AttachedAdapter]:
        """A new adapter, to be filled inside the block and not active after it."""
        self._require_on()
        restore_learning = remember_learning(self.model)
        try:
            with ExitStack() as heads:
                # Heads of the new one begin at the base model's, not at those of another adapter.
                for name in self._active:
                    heads.enter_context(self.adapters[name].trained.original())
                adapter = AttachedAdapter(config, self.model, self._hooks.add_sites)
                yield adapter
                adapter.place()
                adapter.train(self.training)
                adapter.take_off()
        except BaseException:
            self._keep_hooks()
            raise
        finally:
            restore_learning()

    def _keep_hooks(self) -> None:
        targets = (target for adapter in self.adapters.values() for target in adapter.targets)
        self._hooks.keep_sites(target.site for target in targets)

    def _require_on(self) -> None:
        self._hooks.require()
        if self._disabled:
            raise RuntimeError(
                "adapters cannot be added or activated inside disable_adapter(): do so before it."
            )

    def _require_new(self, name: str) -> None:
        require_name(name)
        if name in self.adapters:
            raise ValueError(f"there is an adapter {name!r} already: choose another name.")

    def _require_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.adapters:
                raise ValueError(
                    f"there is no adapter {name!r}; there are {', '.join(self.adapters)}."
                )


def require_name(name: Any) -> str:
    """The name of an adapter, which is a folder's name as well.

    Raises:
        ValueError: If it cannot be one.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in _TAKEN:
        raise ValueError(
            f'the name of an adapter is of letters, digits, "_" and "-", got {name!r}.'
        )
    return name
