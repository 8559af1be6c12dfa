"""The full mirror in the cloud: verify, reconcile, checkpoint, compact. Not built yet."""
