"""Where a published generation goes: a file a target, over one small base."""
