"""What a command that runs tells others: its record in ROOT/runs, its metrics, its log lines."""
