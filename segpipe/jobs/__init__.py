"""Distribution of cases over processes: plan, tasks, retries, executors, clusters, and the state of a run."""
