"""The demo: a simulated plant whose every written value is logged, so that a mirror of it can be checked."""
