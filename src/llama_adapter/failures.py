"""Errors that come from another process, data worker or device, in words that say which and what to do."""

import re

# What a process says that has lost another one: gloo, NCCL and their sockets.
CONNECTION = re.compile(r"gloo|NCCL|c10d|ProcessGroup|[Cc]onnection (closed|reset|refused)|Broken pipe")
DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: (\w+))?")
FAILED_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)\.")


def failure(error: BaseException) -> str:
    """What happened to a data worker or another process, as a sentence; "" for an error of this process's own."""
    text = str(error)
    if match := FAILED_WORKER.search(text):
        kind, number = match.groups()
        reason = " ".join(text[text.rfind(f"{kind}: ") :].split()) if f"{kind}: " in text else kind
        return (
            f"Data worker {number} has failed. {reason.rstrip('.')}. With data.num_workers=0 and HYDRA_FULL_ERROR=1 "
            "the error shows where it comes from."
        )
    if match := DEAD_WORKER.search(text):
        signal = f" of signal {match[2].upper()}" if match[2] else ""
        return (
            f"A data worker (process {match[1].strip()}) has died{signal}, most often for want of memory. Set "
            "data.num_workers lower, or to 0, and go on with resume=<run folder>."
        )
    if is_lost_connection(error):
        return f"Another process of this run has ended; its own message says why. ({' '.join(text.split())[:200]})"
    return ""


def is_lost_connection(error: BaseException) -> bool:
    """Whether another process of the run has gone away while this one was waiting for it."""
    return isinstance(error, RuntimeError) and bool(CONNECTION.search(str(error)))
