"""Groups of replicas under random faults, and how long a takeover takes."""
