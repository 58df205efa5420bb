"""Cases shared out among processes: plan, tasks, retries, executors, clusters, and the state of a run."""
