"""The version, alone in its file so that the build and `--version` read it without importing anything else."""

VERSION = "0.1.0"
