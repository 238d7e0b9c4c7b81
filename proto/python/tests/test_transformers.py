"""Models of transformers with their attention on the service: the same tokens as alone."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mla_client
from service import Service

torch: Any = pytest.importorskip("torch", reason="no torch here: attach() is NOT tested")
transformers: Any = pytest.importorskip(
    "transformers", minversion="5.17", reason="no transformers 5.17 here: attach() is NOT tested"
)

from mla_client.transformers import ServiceCache, attach  # noqa: E402
from models import VOCABULARY, load, make  # noqa: E402


class Pair(NamedTuple):
    alone: Any
    model: Any
    attached: Any


@pytest.fixture(scope="module", params=["v3", "v2-lite"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    torch.set_num_threads(1)
    alone = make(request.param)
    with tempfile.TemporaryDirectory(prefix="mla-transformers.") as folder:
        alone.save_pretrained(folder)
        model = load(Path(folder), torch.float32)
        options = (
            "--ranks", "2", "--backend", "cpu", "--kv-dtype", "f32",
            "--heartbeat-timeout-ms", "30000",
        )  # fmt: skip
        with Service(*options, checkpoint=Path(folder)) as service:
            attached = attach(model, service.endpoint, timeout=60)
            yield Pair(alone, model, attached)
            attached.close()


@pytest.fixture
def nothing_left(pair: Pair) -> Iterator[None]:
    """Sequences of caches that are gone are freed."""
    yield
    gc.collect()
    pair.attached.cache().free()
    with torch.no_grad():
        pair.model(torch.tensor([[5]]), use_cache=False)
    stats = pair.attached.client.stats()
    assert (stats.sequences, stats.blocks_used, stats.steps_open) == (0, 0, 0)


pytestmark = pytest.mark.usefixtures("nothing_left")


def prompt(*lengths: int, seed: int = 7) -> tuple[Any, Any]:
    """Random tokens, shorter rows padded on the left: ids and mask, [len(lengths), longest]."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : longest - length] = 0
    return ids * mask, mask


def both(pair: Pair, ids: Any, mask: Any, *, seed: int = 0, **options: Any) -> None:
    """Alone and attached, generate() makes the same tokens."""
    made = []
    for model in (pair.alone, pair.model):
        torch.manual_seed(seed)
        wanted = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 12, **options}
        made.append(model.generate(ids, attention_mask=mask, **wanted))
    assert len(set(made[0][0, ids.shape[1] :].tolist())) > 4  # else this would not tell much
    assert made[0].tolist() == made[1].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.2},
        {"do_sample": True, "temperature": 1.3, "seed": 3},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 20},
        {"prefill_chunk_size": 9},
        {"use_cache": False, "max_new_tokens": 12},
    ],
    ids=["greedy", "beams", "many beams", "sampling", "many samples", "chunks", "no cache"],
)
def test_generate(pair: Pair, options: dict[str, Any]) -> None:
    ids, mask = prompt(33, 5, 21)
    both(pair, ids, mask, **options)


def test_one_long_prompt(pair: Pair) -> None:
    both(pair, *prompt(300))


def test_assisted(pair: Pair) -> None:
    """A draft model that is sometimes right: its wrong tokens are dropped (TRUNCATE)."""
    assistant = copy.deepcopy(pair.alone)
    with torch.no_grad():
        assistant.lm_head.weight.add_(0.3 * assistant.lm_head.weight.std() *
                                      torch.randn_like(assistant.lm_head.weight))  # fmt: skip
    crops: list[int] = []
    crop = ServiceCache.crop

    def watched(cache: ServiceCache, columns: int) -> None:
        crops.append(columns)
        crop(cache, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServiceCache, "crop", watched)
        both(pair, *prompt(21), assistant_model=assistant)
    assert min(crops) < 0
    assert len(set(crops)) > 1


def test_prompt_lookup(pair: Pair) -> None:
    ids, mask = prompt(12)
    both(pair, ids.repeat(1, 3), mask.repeat(1, 3), prompt_lookup_num_tokens=4)


def test_prompt_is_computed_once(pair: Pair) -> None:
    """A copy of a cache is a fork, and what is generated from it leaves the original alone."""
    first, _ = prompt(70)
    cache = pair.attached.cache()
    with torch.no_grad():
        pair.model(first, past_key_values=cache)
    assert cache.get_seq_length() == 70
    prefilled = pair.attached.client.stats().rows_prefill
    for seed in (1, 2):
        ids = torch.cat([first, prompt(9, seed=seed)[0]], 1)
        mask = torch.ones_like(ids)
        expected = pair.alone.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        made = pair.model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False,
                                   past_key_values=copy.deepcopy(cache))  # fmt: skip
        assert made.tolist() == expected.tolist()
    assert pair.attached.client.stats().rows_prefill - prefilled == 2 * 9
    assert cache.lengths.tolist() == [70]


def test_a_conversation(pair: Pair) -> None:
    """The same cache for one turn after the other."""
    ids, _ = prompt(20)
    cache = pair.attached.cache()
    for turn in range(3):
        mask = torch.ones_like(ids)
        expected = pair.alone.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        ids = pair.model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False,
                                  past_key_values=cache)  # fmt: skip
        assert ids.tolist() == expected.tolist()
        ids = torch.cat([ids, prompt(5, seed=turn)[0]], 1)


def test_one_prompt_for_a_batch(pair: Pair) -> None:
    ids, _ = prompt(40)
    cache = pair.attached.cache()
    with torch.no_grad():
        pair.model(ids, past_key_values=cache)
        cache.batch_repeat_interleave(3)
        tails, _ = prompt(6, 6, 6)
        made = pair.model(tails, past_key_values=cache).logits
        cache.batch_select_indices(torch.tensor([2, 0]))
        more, _ = prompt(1, 1, seed=9)
        last = pair.model(more, past_key_values=cache).logits
        whole = torch.cat([ids.expand(3, -1), tails], 1)
        expected = pair.alone(whole).logits
        torch.testing.assert_close(made, expected[:, 40:], rtol=0, atol=2e-4)
        expected = pair.alone(torch.cat([whole[[2, 0]], more], 1)).logits
        torch.testing.assert_close(last, expected[:, -1:], rtol=0, atol=2e-4)


def test_right_padding(pair: Pair) -> None:
    """Rows padded on the right, and more tokens after the padding: as if each row were alone."""
    lengths = (17, 4, 11)
    ids, _ = prompt(17, 17, 17)
    mask = (torch.arange(17) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        before = pair.attached.client.stats()
        at = mask.cumsum(1) - 1
        out = pair.model(ids * mask, attention_mask=mask, position_ids=at.clamp(min=0))
        after = pair.attached.client.stats()
        sent = sum(getattr(after, rows) - getattr(before, rows)
                   for rows in ("rows_decode", "rows_prefill"))  # fmt: skip
        assert sent == sum(lengths)
        next_ids, _ = prompt(1, 1, 1, seed=8)
        mask = torch.cat([mask, torch.ones_like(next_ids)], 1)
        more = pair.model(next_ids, attention_mask=mask, position_ids=mask.sum(1)[:, None] - 1,
                          past_key_values=out.past_key_values)  # fmt: skip
        for row, length in enumerate(lengths):
            whole = torch.cat([ids[row : row + 1, :length], next_ids[row : row + 1]], 1)
            expected = pair.alone(whole).logits[0]
            made = torch.cat([out.logits[row, :length], more.logits[row]])
            torch.testing.assert_close(made, expected, rtol=0, atol=2e-4)


def test_what_is_refused(pair: Pair) -> None:
    ids, mask = prompt(8, 3)
    model, attached = pair.model, pair.attached
    with torch.no_grad():
        with pytest.raises(ValueError, match="4 dimensions"):
            model(ids, attention_mask=torch.ones(2, 1, 8, 8))
        with pytest.raises(ValueError, match="follow each other"):
            model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]))
        with pytest.raises(ValueError, match="weights"):
            model(ids, output_attentions=True)
        with pytest.raises(ValueError, match=r"cache\(\)"):
            model.generate(ids, attention_mask=mask, past_key_values=transformers.DynamicCache())
        cache = model(ids, attention_mask=mask).past_key_values
        with pytest.raises(ValueError, match="2 rows"):
            model(ids[:1], past_key_values=cache)
        with pytest.raises(ValueError, match="columns"):
            model(ids, attention_mask=mask, past_key_values=cache)
        with pytest.raises(ValueError, match="attached"):
            attach(model, attached.client)
    with pytest.raises(RuntimeError, match="gradients"):
        model(ids, labels=ids).loss.backward()
    with pytest.raises(ValueError, match="hidden_size"):
        attach(make("v3", hidden_size=64), attached.client)


def test_errors_come_through(pair: Pair) -> None:
    """A step that fails leaves the cache as it was, and it can be used again."""
    ids, _ = prompt(10)
    tails, _ = prompt(3, seed=2)
    with torch.no_grad():
        cache = pair.attached.cache()
        pair.model(ids, past_key_values=cache)
        free = pair.attached.client.hello().blocks_free
        with pytest.raises(mla_client.Limit):
            pair.model(torch.ones((1, 10000), dtype=torch.long), past_key_values=cache)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair.model.model.norm, "forward", lambda x: x / "no")
            with pytest.raises(TypeError):
                pair.model(tails, past_key_values=cache)
        stats = pair.attached.client.stats()
        assert (stats.steps_open, stats.blocks_free) == (0, free)
        assert (cache.get_seq_length(), cache.lengths.tolist()) == (10, [10])
        made = pair.model(tails, past_key_values=cache).logits
        expected = pair.alone(torch.cat([ids, tails], 1)).logits[:, 10:]
        torch.testing.assert_close(made, expected, rtol=0, atol=2e-4)
        pair.attached.client.free(*cache.sequences)
        pair.attached.client.step([(cache.sequences[0], 0, 1)]).abort()
        with pytest.raises(mla_client.OutOfOrder):
            pair.model(tails, past_key_values=cache)
