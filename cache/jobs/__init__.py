"""The job engine: partitions, clusters, progress and signals."""
