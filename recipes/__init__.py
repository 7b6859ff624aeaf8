"""Published methods as two-tower runs: claim, data, command, expected and obtained number."""
