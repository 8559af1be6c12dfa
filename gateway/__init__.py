"""The edge: subscribe, decode, journal, then acknowledge; push, publish, serve."""
