"""Files, folders of runs, checkpoints, shards and logs. Knows no mathematics."""
