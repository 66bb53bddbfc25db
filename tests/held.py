"""How many bytes of tensors a function holds."""

import gc

import torch


def peak_bytes(function) -> int:
    """The most memory that function() holds on the CPU beyond what was there before, in bytes."""
    gc.collect()  # what nobody needs any more is not to be freed in between
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
