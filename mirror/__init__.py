"""The contract that edge and cloud share: samples as columns, their files, their log. Pure but for `mirror.io`."""
