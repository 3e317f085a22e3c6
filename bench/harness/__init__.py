"""What the benchmark files share: declarations, clocks, child processes, results, reports."""
