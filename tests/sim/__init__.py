"""One gateway from end to end in simulated time, with the real code and everything that goes wrong around it."""
