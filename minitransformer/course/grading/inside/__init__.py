"""Scripts that run shut in. Each is started by its path and imports nothing of this project at its start."""
