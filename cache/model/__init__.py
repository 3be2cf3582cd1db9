"""What watches a model: data, tasks, sites, capture, batches and fingerprints."""
