"""What can go wrong: one class for each error code of the protocol, and those of the client itself.

The text of an error is what the service said and what to do about it. Three bases tell what a
scheduler has to know: `TryAgain` (nothing changed, it may work in a moment), `Lost` (rows or
sequences have to be computed again) and `MlaError` (all others: the request was wrong).
"""

from __future__ import annotations

INDEX_NONE = 0xFFFFFFFF


class MlaError(Exception):
    """A request failed. In all cases the state is as it was before the request."""

    code = 0
    advice = "This client does not know the code: it is older than the service."

    def __init__(self, sentence: str = "", index: int | None = None, code: int | None = None):
        self.sentence = sentence
        self.index = index
        """The entry of the request that is at fault, if it is one."""
        if code is not None:
            self.code = code
        super().__init__(sentence, index, self.code)

    def __str__(self) -> str:
        place = "" if self.index is None else f" (entry {self.index})"
        head = f"{type(self).__name__} {self.code}" if self.code else type(self).__name__
        said = f": {self.sentence.rstrip('.')}{place}." if self.sentence or place else "."
        return f"{head}{said} {self.advice}"


class TryAgain(MlaError):
    """Nothing changed, and the same request may succeed later."""


class Lost(MlaError):
    """What was computed is gone, or may be: abort the step, and compute again what is lost."""


class Malformed(MlaError):
    code = 1
    advice = "The client and the service disagree on the protocol: report it."


class Version(MlaError):
    code = 2
    advice = "Install the client that belongs to the service."


class Type(MlaError):
    code = 3
    advice = "The service does not know this request: it is older than the client."


class Frames(MlaError):
    code = 4
    advice = "The client and the service disagree on the protocol: report it."


class Limit(MlaError):
    code = 5
    advice = "Make the step or the request smaller: client.info has the limits."


class Length(MlaError):
    code = 6
    advice = "The client and the service disagree on the shape of rows: report it."


class Field(MlaError):
    code = 7
    advice = "A value is not among those allowed: the service is older than the client."


class HelloRequired(MlaError):
    code = 10
    advice = "The client says HELLO by itself: report it."


class NotReady(TryAgain):
    code = 11
    advice = "Wait with client.wait_ready(), then open the step again."


class Busy(TryAgain):
    code = 12
    advice = "Try again when a step or a RUN has ended."


class StepUnknown(MlaError):
    code = 13
    advice = "The step was closed: open another one."


class StepExists(MlaError):
    code = 14
    advice = "Leave step ids to the client, or use each id once."


class StepBusy(TryAgain):
    code = 15
    advice = "Close the step when its RUNs have ended."


class StepLost(Lost):
    code = 16
    advice = "Abort the step and open it again: KvLost will name the sequences to compute again."


class SequenceUnknown(MlaError):
    code = 20
    advice = "Open the sequence from start 0 first."


class SequenceExists(MlaError):
    code = 21
    advice = "Fork to an id that is not in use, or free that one first."


class SequenceBusy(MlaError):
    code = 22
    advice = "Close the step that the sequence is in first."


class SequenceRepeated(MlaError):
    code = 23
    advice = "Name each sequence once in a request."


class OutOfOrder(MlaError):
    code = 24
    advice = "Start at the committed length: that of the last step that was committed."


class KvFull(TryAgain):
    code = 25
    advice = "Free or truncate sequences, or wait until others have ended."


class KvLost(Lost):
    code = 26
    advice = "Open the sequence again from start 0 with all of its tokens, or free it."


class Context(MlaError):
    code = 27
    advice = "End the sequence: client.info.context_max is the longest there can be."


class SequencesFull(TryAgain):
    code = 28
    advice = "Free sequences that have ended, or start the service with more --sequences-max."


class Layer(MlaError):
    code = 30
    advice = "client.info.layers has those that are served."


class Dtype(MlaError):
    code = 31
    advice = "Use float32 or bfloat16."


class Count(MlaError):
    code = 32
    advice = "A RUN has one row for each new token of the step, each of client.info.hidden values."


class GroupLost(Lost):
    code = 33
    advice = "Abort the step and open it again: KvLost will name the sequences to compute again."


class Deadline(Lost):
    code = 34
    advice = "Run the layer again or abort the step; StepLost says that it can't be repeated."


class Region(MlaError):
    code = 35
    advice = "x and out must not overlap in shared memory."


class NotShared(MlaError):
    code = 36
    advice = "Send frames (shared_memory=False)."


class Internal(MlaError):
    code = 40
    advice = "Look into the service's logs."


class ConnectionLost(Lost):
    """The connection ended, and all of this client's steps and sequences with it."""

    advice = (
        "The next call connects again; sequences are then KvLost: "
        "open them from start 0 with all of their tokens."
    )


class AccessDenied(MlaError):
    """The service does not know the client's key, or is not the one whose key the client has."""

    advice = "curve_keys must be a folder that mla-keys made for this service."


class Timeout(MlaError):
    """No answer in time."""

    advice = "See that the service runs and answers, or give it more time."


class Closed(MlaError):
    """The client, or the step, was closed by its owner."""

    advice = "Make a new one."


class ProtocolError(MlaError):
    """What came is no reply of the protocol."""

    advice = "See that the endpoint is that of the service's clients, and not that of its workers."


BY_CODE: dict[int, type[MlaError]] = {
    error.code: error
    for error in (
        Malformed, Version, Type, Frames, Limit, Length, Field, HelloRequired, NotReady, Busy,
        StepUnknown, StepExists, StepBusy, StepLost, SequenceUnknown, SequenceExists, SequenceBusy,
        SequenceRepeated, OutOfOrder, KvFull, KvLost, Context, SequencesFull, Layer, Dtype, Count,
        GroupLost, Deadline, Region, NotShared, Internal,
    )
}  # fmt: skip


def of_reply(code: int, index: int, sentence: str) -> MlaError:
    """The error that a reply tells."""
    place = None if index == INDEX_NONE else index
    error = BY_CODE.get(code)
    return error(sentence, place) if error else MlaError(sentence, place, code)
