"""Where the counters of the limits live: one module per store."""
