"""Client of the mla service: attention layers, and their KV cache, for somebody else's scheduler.

with mla_client.Client("ipc:///run/mla/clients") as client:
    with client.step([mla_client.Entry(sequence=1, start=0, tokens=12)]) as step:
        y = step.run(layer, x)
"""

from mla_client._wire import Entry, Fork, Info, Opened, RunTimes, Stats, Truncation
from mla_client.aio import AsyncClient, AsyncStep
from mla_client.client import Client, Future, Step
from mla_client.errors import (
    AccessDenied,
    Busy,
    Closed,
    ConnectionLost,
    Context,
    Count,
    Deadline,
    Dtype,
    Field,
    Frames,
    GroupLost,
    HelloRequired,
    Internal,
    KvFull,
    KvLost,
    Layer,
    Length,
    Limit,
    Lost,
    Malformed,
    MlaError,
    NotReady,
    NotShared,
    OutOfOrder,
    ProtocolError,
    Region,
    SequenceBusy,
    SequenceExists,
    SequenceRepeated,
    SequencesFull,
    SequenceUnknown,
    StepBusy,
    StepExists,
    StepLost,
    StepUnknown,
    Timeout,
    TryAgain,
    Type,
    Version,
)

__all__ = [
    "AccessDenied", "AsyncClient", "AsyncStep", "Busy", "Client", "Closed", "ConnectionLost",
    "Context", "Count", "Deadline", "Dtype", "Entry", "Field", "Fork", "Frames", "Future",
    "GroupLost", "HelloRequired", "Info", "Internal", "KvFull", "KvLost", "Layer", "Length",
    "Limit", "Lost", "Malformed", "MlaError", "NotReady", "NotShared", "Opened", "OutOfOrder",
    "ProtocolError", "Region", "RunTimes", "SequenceBusy", "SequenceExists", "SequenceRepeated",
    "SequenceUnknown", "SequencesFull", "Stats", "Step", "StepBusy", "StepExists", "StepLost",
    "StepUnknown", "Timeout", "Truncation", "TryAgain", "Type", "Version",
]  # fmt: skip
