"""What runs: a child process, its record, the deployment."""
