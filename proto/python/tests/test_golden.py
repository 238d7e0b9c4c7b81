"""The outputs are those of transformers, however the sequences are cut into steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mla_client
from golden import Case, bits_of, error, floats_of
from mla_client import Client, Entry

TOLERANCE = 1e-5
BF16_TOLERANCE = 1e-2


class Track:
    """A sequence of the case on its way through the service."""

    ids = 0

    def __init__(self, case: Case, index: int, done: int = 0):
        Track.ids += 1
        self.id = Track.ids
        self.case = case
        self.index = index
        self.length = case.lengths[index]
        self.done = done
        self.rows: dict[int, list[np.ndarray[Any, Any]]] = {layer: [] for layer in case.layers}
        self.first = done

    def check(self, tolerance: float = TOLERANCE) -> None:
        for layer, rows in self.rows.items():
            expected = self.case.outputs[layer, self.index][self.first :]
            assert error(np.concatenate(rows), expected) < tolerance


def bf16(x: Any) -> Any:
    return bits_of(x)


def plain(x: Any) -> Any:
    return x


def run(client: Client, parts: list[tuple[Track, int]], *, action: str = "commit",
        wrong: int = 0, times: int = 1, convert: Any = plain) -> None:  # fmt: skip
    """A step of all the case's layers. The last `wrong` tokens of each part have wrong rows."""
    case = parts[0][0].case
    step = client.step([Entry(track.id, track.done, tokens) for track, tokens in parts])
    for layer in case.layers:
        rows = []
        for track, tokens in parts:
            end = track.done + tokens
            x = case.inputs[layer, track.index][track.done : end].copy()
            if wrong:
                x[-wrong:] = case.wrong(layer, track.index)[max(track.done, end - wrong) : end]
            rows.append(x)
        x = convert(np.concatenate(rows))
        y = step.run(layer, x)
        for _ in range(times - 1):
            assert (step.run(layer, x) == y).all()
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        if y.dtype == np.uint16:
            y = floats_of(y)
        if action == "commit":
            at = 0
            for track, tokens in parts:
                track.rows[layer].append(y[at : at + tokens - wrong])
                at += tokens
    if action == "commit":
        step.commit()
        for track, tokens in parts:
            track.done += tokens
    else:
        step.abort()


def tracks(case: Case) -> list[Track]:
    return [Track(case, i) for i in range(len(case.lengths))]


def end(client: Client, all_tracks: list[Track], tolerance: float = TOLERANCE) -> None:
    for track in all_tracks:
        assert track.done == track.length
        track.check(tolerance)
    client.free(*[track.id for track in all_tracks])


@pytest.mark.parametrize("tokens", [1000, 63, 64, 65])
def test_prefill_in_chunks(client: Client, case: Case, tokens: int) -> None:
    for track in tracks(case):
        while track.done < track.length:
            run(client, [(track, min(tokens, track.length - track.done))])
        end(client, [track])


def test_prefill_then_decode(client: Client, case: Case) -> None:
    all_tracks = tracks(case)
    for track in all_tracks:
        start = min(track.length // 2, max(0, track.length - 20))
        if start:
            run(client, [(track, start)])
    while batch := [(track, 1) for track in all_tracks if track.done < track.length]:
        run(client, batch)
    end(client, all_tracks)


def test_drafts_are_truncated(client: Client, case: Case) -> None:
    track = Track(case, 3)
    run(client, [(track, 50)])
    while track.done < track.length:
        tokens = min(3, track.length - track.done)
        wrong = tokens - 1
        run(client, [(track, tokens)], wrong=wrong)
        track.done -= wrong
        if wrong:
            client.truncate(track.id, track.done)
    end(client, [track])


def test_mixed_in_any_order(client: Client, case: Case) -> None:
    random = np.random.default_rng(1)
    all_tracks = tracks(case)
    turn = 0
    while live := [track for track in all_tracks if track.done < track.length]:
        turn += 1
        share = [
            (track, 1 if (track.index + turn) % 2 else
             min(track.length - track.done, max(2, track.length // 6)))
            for track in live
        ]  # fmt: skip
        random.shuffle(share)
        run(client, share)
    end(client, all_tracks)


def test_forks_of_a_prefix(client: Client, case: Case) -> None:
    parent = Track(case, 4)
    run(client, [(parent, 192)])
    children = [Track(case, 4, length) for length in (192, 191, 96, 128, 1)]
    client.fork_many([(parent.id, child.id, child.done) for child in children])
    # First something wrong from all of them: what is shared must survive it.
    run(client, [(track, 3) for track in (parent, *children)], action="abort", wrong=3)
    for track in (parent, *children):
        while track.done < track.length:
            run(client, [(track, min(33, track.length - track.done))])
    end(client, [parent, *children])


def test_aborted_then_done_right(client: Client, case: Case) -> None:
    for track in tracks(case):
        run(client, [(track, track.length)], action="abort", wrong=track.length)
        run(client, [(track, track.length)])
        end(client, [track])


def test_every_run_repeated(client: Client, case: Case) -> None:
    track = Track(case, 4)
    run(client, [(track, track.length - 1)], times=2)
    run(client, [(track, 1)], times=2)
    end(client, [track])


def test_several_steps_open(client: Client, case: Case) -> None:
    """Layers of four steps, all on their way at once, and in another order than they were sent."""
    all_tracks = tracks(case)[1:]
    steps = [client.step([Entry(track.id, 0, track.length)]) for track in all_tracks]
    futures = {
        (layer, track.index): step.submit(layer, case.inputs[layer, track.index])
        for layer in case.layers
        for step, track in zip(steps, all_tracks, strict=True)
    }
    for (layer, index), future in reversed(futures.items()):
        assert error(future.result(), case.outputs[layer, index]) < TOLERANCE
    for step in steps:
        step.commit()
    client.free(*[track.id for track in all_tracks])


def test_bf16(client: Client, case: Case) -> None:
    for track in tracks(case):
        prefix = max(0, track.length - 3)
        if prefix:
            run(client, [(track, prefix)], convert=bf16)
        while track.done < track.length:
            run(client, [(track, 1)], convert=bf16)
        end(client, [track], BF16_TOLERANCE)


def test_ml_dtypes(client: Client, case: Case) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = case.inputs[0, 2].astype(bfloat16)
    y = client.run_layer([Entry(1, 0, 64)], 0, x)
    assert y.dtype == bfloat16
    assert error(y.astype(np.float32), case.outputs[0, 2]) < BF16_TOLERANCE
    client.free(1)


def test_one_layer_alone(client: Client, case: Case) -> None:
    y = client.run_layer([Entry(1, 0, 64)], 1, case.inputs[1, 2])
    assert error(y, case.outputs[1, 2]) < TOLERANCE
    assert client.stats().sequences == 1
    client.free(1)


def test_a_wrong_row_is_noticed(client: Client, case: Case) -> None:
    """So that the tests above can fail."""
    x = case.inputs[0, 2].copy()
    x[10] = -x[10]
    y = client.run_layer([mla_client.Entry(1, 0, 64)], 0, x)
    assert error(y, case.outputs[0, 2]) > 100 * TOLERANCE
    client.free(1)
