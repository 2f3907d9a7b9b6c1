"""Each diagnostic is a synthetic task that isolates one ability."""
