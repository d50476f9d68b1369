"""What a run leaves on disk: its workdir, its checkpoints, the best of them, and their hashes."""
