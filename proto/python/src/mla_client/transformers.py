"""Hugging Face DeepSeek models whose attention runs on the service.

with mla_client.transformers.without_attention():
    model = AutoModelForCausalLM.from_pretrained(folder)
mla_client.transformers.attach(model, "tcp://127.0.0.1:5755")
model.generate(**inputs)

The service serves the same folder. Each forward of the model is one step; its cache holds nothing
but the ids of sequences.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3

from mla_client.client import Client, Step

__all__ = ["Attached", "ServiceAttention", "ServiceCache", "attach", "without_attention"]

_MODELS = (modeling_deepseek_v2.DeepseekV2Model, modeling_deepseek_v3.DeepseekV3Model)
_CONFIGURED = {  # what HELLO tells: what config.json calls it
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "q_lora": "q_lora_rank",
    "latent": "kv_lora_rank",
    "nope": "qk_nope_head_dim",
    "rope": "qk_rope_head_dim",
    "v": "v_head_dim",
}
_KEYWORD = "mla_pass"  # the keyword by which a forward of the model reaches its layers

# Ids of sequences, of all models of this process: a client may have sequences of its own besides.
_sequences = itertools.count(1 << 63)

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


class _NoGradient(torch.autograd.Function):
    """The service has no backward pass, and a gradient that leaves attention out would be wrong."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, run: Any) -> torch.Tensor:  # noqa: ARG004
        result: torch.Tensor = run(x)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ARG004
        raise RuntimeError("attention on the service has no gradients: it is for inference")


class _Pass:
    """A forward of the model: the step, and which rows of it are tokens."""

    def __init__(self, step: Step | None, tokens: torch.Tensor | None):
        self._step = step  # None: there is nothing but padding
        self._tokens = tokens  # their places in [batch * columns]; None: all are

    def run(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """[batch, columns, hidden]; rows of padding are not sent, and come back as zeros."""
        if self._step is None:
            return torch.zeros_like(x)
        rows = x.reshape(-1, x.shape[-1])
        tokens = None if self._tokens is None else self._tokens.to(x.device)
        if tokens is not None:
            rows = rows[tokens]
        if rows.dtype not in (torch.float32, torch.bfloat16):
            rows = rows.float()
        y = self._step.run(layer, rows.contiguous()).to(x.dtype)
        if tokens is not None:
            y = torch.zeros_like(x).view(-1, x.shape[-1]).index_copy_(0, tokens, y)
        return y.view(x.shape)


class ServiceAttention(nn.Module):
    """Stands where self_attn was. It has no weights."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        step: _Pass | None = kwargs.get(_KEYWORD)
        if step is None:
            raise RuntimeError(
                "the model is not attached to a service: mla_client.transformers.attach"
            )
        run = functools.partial(step.run, self.layer_idx)
        if hidden_states.requires_grad and torch.is_grad_enabled():
            return _NoGradient.apply(hidden_states, run), None
        return run(hidden_states), None


class ServiceCache(Cache):
    """A batch of sequences on the service, in the place of keys and values.

    It counts in columns, as transformers does: each forward adds one for each token of its longest
    row, and a column may be a token to one sequence and padding to another. Positions are those of
    tokens alone, as the service counts.
    """

    def __init__(self, attached: Attached):
        super().__init__(layers=[])
        self._attached = attached
        self._clear()
        # On the service. Freed with the next forward when nobody has the cache any more.
        self._alive: set[int] = set()
        weakref.finalize(self, attached.leave, self._alive).atexit = False

    def _clear(self) -> None:
        self._columns = 0
        self.sequences: list[int] = []
        """The sequence id of each row of the batch."""
        self.lengths: Ints = np.zeros(0, np.int64)
        """The tokens of each sequence."""
        self._shifts: Ints = np.zeros(0, np.int64)  # the model's positions minus the service's
        self._tokens: Bools = np.zeros((0, 0), np.bool_)  # [batch, at least columns]

    # What a forward does

    def begin(self, tokens: Bools, positions: Ints | None) -> list[tuple[int, int, int]]:
        """The entries of a step that adds these columns. Nothing is changed that matters."""
        if not self.sequences:
            batch = len(tokens)
            self.sequences = list(itertools.islice(_sequences, batch))
            self.lengths = np.zeros(batch, np.int64)
            self._shifts = np.zeros(batch, np.int64)
            self._tokens = np.zeros((batch, 0), np.bool_)
        if len(tokens) != len(self.sequences):
            raise ValueError(f"the cache has {len(self.sequences)} rows, the batch {len(tokens)}")
        if positions is not None:
            self._follow(tokens, positions)
        counts = tokens.sum(1)
        return [
            (self.sequences[row], int(self.lengths[row]), int(counts[row]))
            for row in np.flatnonzero(counts)
        ]

    def _follow(self, tokens: Bools, positions: Ints) -> None:
        """Attention depends on differences of positions alone, so a row's may begin anywhere; but
        they must not skip or repeat any, as the service's don't."""
        places = self.lengths[:, None] + tokens.cumsum(1) - 1
        shifts = positions - places
        first = np.take_along_axis(shifts, tokens.argmax(1)[:, None], 1)[:, 0]
        expected = np.where(self.lengths > 0, self._shifts, first)
        wrong = tokens & (shifts != expected[:, None])
        if wrong.any():
            row = int(np.argwhere(wrong)[0, 0])
            raise ValueError(
                f"positions of row {row} don't follow each other: give position_ids that count "
                "the tokens of attention_mask, without padding"
            )
        self._shifts = np.where(tokens.any(1), expected, self._shifts)

    def opened(self, entries: Iterable[tuple[int, int, int]]) -> None:
        self._alive.update(sequence for sequence, _, _ in entries)

    def committed(self, tokens: Bools) -> None:
        columns = self._columns + tokens.shape[1]
        if columns > self._tokens.shape[1]:
            grown = np.zeros((len(tokens), max(64, 2 * columns)), np.bool_)
            grown[:, : self._columns] = self._tokens[:, : self._columns]
            self._tokens = grown
        self._tokens[:, self._columns : columns] = tokens
        self._columns = columns
        self.lengths = self.lengths + tokens.sum(1)

    # What transformers asks of a cache

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self._columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002
        return self._columns + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        return -1

    @property
    def batch_size(self) -> int:
        return len(self.sequences) or -1

    @property
    def is_initialized(self) -> bool:
        return bool(self.sequences)

    def __len__(self) -> int:
        return int(self._attached.model.config.num_hidden_layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.sequences)} rows, {self._columns} columns)"

    def update(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        raise RuntimeError("a ServiceCache has no keys and values: its model must be attached")

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the last -tokens_to_remove columns: TRUNCATE."""
        if tokens_to_remove > 0:
            raise ValueError("crop takes minus the number of columns to drop")
        kept = max(0, self._columns + tokens_to_remove)
        lengths = self.lengths - self._tokens[:, kept : self._columns].sum(1)
        self._attached.truncate(
            (self.sequences[row], int(lengths[row]))
            for row in np.flatnonzero(lengths < self.lengths)
        )
        self.lengths = lengths
        self._columns = kept

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i is to be what row beam_idx[i] is: FORK of rows that go on more than once, FREE of
        those that don't go on."""
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        rows = torch.arange(len(self.sequences), device=indices.device)
        self._select(rows[indices].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([row for row in range(len(self.sequences)) for _ in range(repeats)])

    def _select(self, rows: Sequence[int]) -> None:
        old = self.sequences
        staying: set[int] = set()
        forks: list[tuple[int, int, int]] = []
        new = []
        for row in rows:
            if row not in staying:
                staying.add(row)
                new.append(old[row])
                continue
            new.append(next(_sequences))
            if self.lengths[row] > 0:
                forks.append((old[row], new[-1], int(self.lengths[row])))
        self._attached.fork(forks)
        self._alive.update(child for _, child, _ in forks)
        self.sequences = new
        self.lengths = self.lengths[rows]
        self._shifts = self._shifts[rows]
        self._tokens = self._tokens[rows]
        leaving = self._alive.difference(new)
        self._alive.intersection_update(new)
        self._attached.free(leaving)

    def copy(self) -> ServiceCache:
        """Another cache with the same tokens, which costs no KV but for the last, partial blocks:
        FORK. Prompts are computed once and generated from many times like this."""
        other = ServiceCache(self._attached)
        other._columns = self._columns
        other.sequences = list(itertools.islice(_sequences, len(self.sequences)))
        other.lengths = self.lengths.copy()
        other._shifts = self._shifts.copy()
        other._tokens = self._tokens.copy()
        forks = [
            fork
            for fork in zip(self.sequences, other.sequences, self.lengths.tolist(), strict=True)
            if fork[2] > 0
        ]
        self._attached.fork(forks)
        other._alive.update(child for _, child, _ in forks)
        return other

    def __copy__(self) -> ServiceCache:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> ServiceCache:
        memo[id(self)] = other = self.copy()
        return other

    def reset(self) -> None:
        """Frees the sequences now: an empty cache, for a batch of any size."""
        leaving = set(self._alive)
        self._alive.clear()
        self._clear()
        self._attached.free(leaving)

    free = reset


class Attached:
    """A model and the client that its attention uses."""

    def __init__(self, model: PreTrainedModel, client: Client, owned: bool):
        self.model = model
        self.client = client
        self._owned = owned
        self._left: deque[set[int]] = deque()

    def cache(self) -> ServiceCache:
        """An empty cache, for prompts that are to be used more than once."""
        return ServiceCache(self)

    def close(self) -> None:
        """Frees all sequences, and ends the connection if attach made it."""
        self._sweep()
        if self._owned:
            self.client.close()

    # Caches come and go in other threads and in the middle of calls, so theirs is only a list.

    def leave(self, sequences: set[int]) -> None:
        if sequences:
            self._left.append(sequences)

    def _sweep(self) -> None:
        while self._left:
            self.free(self._left.popleft())

    def free(self, sequences: Iterable[int]) -> None:
        for some in self._requests(sequences):
            self.client.free(*some)

    def fork(self, forks: Iterable[tuple[int, int, int]]) -> None:
        for some in self._requests(forks):
            self.client.fork_many(some)

    def truncate(self, truncations: Iterable[tuple[int, int]]) -> None:
        for some in self._requests(truncations):
            self.client.truncate_many(some)

    def _requests(self, entries: Iterable[Any]) -> Iterator[list[Any]]:
        left = list(entries)
        most = self.client.info.step_sequences_max
        for first in range(0, len(left), most):
            yield left[first : first + most]

    # A forward of the model

    @contextmanager
    def forward(
        self,
        cache: ServiceCache,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        at: torch.Tensor | None,
    ) -> Iterator[_Pass]:
        """A step for the forward of x [batch, columns, ...]: committed when it ends, aborted when
        an exception leaves it. mask [batch, columns of the cache and of x]; at [batch, columns] are
        the positions."""
        self._sweep()
        tokens = _tokens(x, cache.get_seq_length(), mask)
        entries = cache.begin(tokens, None if at is None else _positions(at, tokens.shape))
        if not entries:
            yield _Pass(None, None)
        else:
            places = None
            if not tokens.all():
                places = torch.from_numpy(np.flatnonzero(tokens)).to(x.device)
            with self.client.step(entries) as step:
                cache.opened(entries)
                yield _Pass(step, places)
        cache.committed(tokens)


def _tokens(x: torch.Tensor, past: int, mask: torch.Tensor | None) -> Bools:
    """Which of the new places [batch, columns] are tokens."""
    batch, columns = x.shape[:2]
    if mask is None:
        return np.ones((batch, columns), np.bool_)
    if mask.ndim != 2:
        raise ValueError(
            f"attention_mask has {mask.ndim} dimensions: the service is causal, and takes only "
            "padding, as [batch, columns]"
        )
    if mask.shape != (batch, past + columns):
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)}, and not {(batch, past + columns)}: {past} "
            f"columns in the cache and {columns} new ones"
        )
    tokens: Bools = mask[:, past:].bool().cpu().numpy()
    return tokens


def _positions(at: torch.Tensor, shape: tuple[int, ...]) -> Ints:
    if at.ndim != 2 or at.shape[1] != shape[1]:
        raise ValueError(f"position_ids is {tuple(at.shape)}, and not {shape}")
    positions: Ints = np.broadcast_to(at.cpu().numpy(), shape)
    return positions


def _forward(attached: Attached, base: PreTrainedModel) -> Any:
    """base.forward, as one step."""
    plain = base.forward
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        if given.get("output_attentions") or base.config.output_attentions:
            raise ValueError("the service does not tell attention weights (output_attentions)")
        embeds = given.get("inputs_embeds")
        x = given.get("input_ids") if embeds is None else embeds
        if x is None:
            return plain(**given)  # which says what is missing
        cache = _cache_of(attached, given.get("past_key_values"))
        use_cache = given.get("use_cache")
        use_cache = base.config.use_cache if use_cache is None else use_cache
        kept = use_cache or given.get("past_key_values") is not None
        positions = given.get("position_ids")
        if positions is None:
            # What the model would take, and pass to nobody.
            positions = torch.arange(x.shape[1]).unsqueeze(0) + cache.get_seq_length()
        given["past_key_values"] = cache if kept else None
        try:
            with attached.forward(cache, x, given.get("attention_mask"), positions) as step:
                # A mask of four dimensions is taken as it is, so that no other is made.
                given["attention_mask"] = x.new_empty((0, 0, 0, 0), dtype=torch.bool)
                given[_KEYWORD] = step
                return plain(**given)
        finally:
            if not kept:
                cache.free()

    return forward


def _cache_of(attached: Attached, given: Any) -> ServiceCache:
    if given is None:
        return attached.cache()
    if isinstance(given, ServiceCache):
        if given._attached is not attached:
            raise ValueError("the cache belongs to another model")
        return given
    # generate() makes one, and goes on with what the forward returns.
    if type(given) is DynamicCache and given.get_seq_length() == 0:
        if not getattr(given, "_is_user_defined", False):
            return attached.cache()
        raise ValueError("make the cache with cache() of what attach() returned")
    raise ValueError(f"a {type(given).__name__} can't hold what is on the service")


def _check(client: Client, config: Any) -> None:
    """Whether the service can have loaded this model."""
    info = client.info
    for told, name in _CONFIGURED.items():
        ours, theirs = getattr(config, name) or 0, getattr(info, told)
        if ours != theirs:
            raise ValueError(f"the service's model has {name} {theirs}, this one {ours}")
    missing = sorted(set(range(config.num_hidden_layers)) - set(info.layers))
    if missing:
        raise ValueError(f"the service does not have layers {missing} of this model")


def attach(model: PreTrainedModel, service: str | Client, **options: Any) -> Attached:
    """Has the attention of a DeepseekV2 or DeepseekV3 model run on the service, which must serve
    the same checkpoint. Its own attention weights are dropped.

    service: a client, or an endpoint to connect to; `options` are then those of Client.
    ValueError where the service has another model.
    """
    base = model.base_model
    if not isinstance(base, _MODELS):
        raise TypeError(f"{type(model).__name__} is not a DeepseekV2 or DeepseekV3 model")
    if "forward" in vars(base) and hasattr(base.forward, "mla_attached"):
        raise ValueError("the model is attached to a service already")
    owned = isinstance(service, str)
    client = Client(service, **options) if isinstance(service, str) else service
    try:
        _check(client, base.config)
    except ValueError:
        if owned:
            client.close()
        raise
    for index, layer in enumerate(base.layers):
        layer.self_attn = ServiceAttention(base.config, index).train(base.training)
    attached = Attached(model, client, owned)
    base.forward = _forward(attached, base)
    base.forward.mla_attached = attached
    return attached


@contextmanager
def without_attention() -> Iterator[None]:
    """DeepSeek models that are made or loaded meanwhile have no attention weights: they have to be
    attached before they are used."""
    replaced = [
        (modeling, f"{name}Attention", getattr(modeling, f"{name}PreTrainedModel"))
        for modeling, name in (
            (modeling_deepseek_v2, "DeepseekV2"),
            (modeling_deepseek_v3, "DeepseekV3"),
        )
    ]
    before = [
        (getattr(module, name), model._keys_to_ignore_on_load_unexpected)
        for module, name, model in replaced
    ]
    try:
        for (module, name, model), (_, ignored) in zip(replaced, before, strict=True):
            setattr(module, name, ServiceAttention)
            model._keys_to_ignore_on_load_unexpected = [*(ignored or []), r"\.self_attn\."]
        yield
    finally:
        for (module, name, model), (attention, ignored) in zip(replaced, before, strict=True):
            setattr(module, name, attention)
            model._keys_to_ignore_on_load_unexpected = ignored
