"""The verbs of the command `edgemirror`, one file for each family."""
