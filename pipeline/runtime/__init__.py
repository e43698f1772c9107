"""What a process needs: signals, progress, counters, streams, cores and memory."""
