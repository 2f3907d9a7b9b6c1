"""What a grid asks, resolved to runs: settings and axes, matched sizes, what is searched for, and the costs."""
